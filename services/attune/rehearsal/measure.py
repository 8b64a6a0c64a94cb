"""Measuring a policy from outside: held-out questions asked through the API, without consent to train on them."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice

from attune.client import AsyncClient
from attune.errors import ResourceExhausted, Unavailable
from attune.rehearsal.demo.items import ERRANDS_SKILL, Item
from attune.rehearsal.figures import BeforeAndAfter, Proportion, SkillFigures, TutorFigures
from attune.rehearsal.journal import CLAIM, Exchange
from attune.rehearsal.users import RIGHT, is_as_wished, judge_answer

SAMPLED_TEMPERATURE = 0.8
LEAST_SAMPLED = 500
_GREEDY_ERRANDS = 40
_AT_ONCE = 48
_ANSWER_SECONDS = 120
_WAIT_SECONDS = 1.0
_ATTEMPTS = 10


@dataclass(frozen=True)
class Answer:
    """What came back for one item."""

    item: Item
    text: str
    kind: str
    policy_id: str
    response_id: str


@dataclass(frozen=True)
class Measurement:
    """Sampled answers to the errands, and greedy ones to everything."""

    sampled: tuple[Answer, ...]
    greedy: tuple[Answer, ...]

    def policies(self, persona: str) -> frozenset[str]:
        """Whose answers these are; more than one when a policy was swapped in meanwhile."""
        return frozenset(a.policy_id for a in (*self.sampled, *self.greedy) if a.item.persona == persona)


async def measure(
    client: AsyncClient, errands: Sequence[Item], others: Sequence[Item], told: Callable[[Answer, int, int], None]
) -> Measurement:
    """Samples enough answers to the errands, asked round and round, and asks some of them and all others greedily.

    `told` hears each answer, and how many of how many have come. Raises AttuneError when an answer fails.
    """
    sampled = [(item, SAMPLED_TEMPERATURE) for item in islice(cycle(errands), LEAST_SAMPLED)]
    work = sampled + [(item, 0.0) for item in (*errands[:_GREEDY_ERRANDS], *others)]
    answers: list[Answer | None] = [None] * len(work)
    queue = iter(enumerate(work))
    done = 0

    async def ask_all() -> None:
        nonlocal done
        for index, (item, temperature) in queue:
            answers[index] = answer = await _ask(client, item, temperature)
            done += 1
            told(answer, done, len(work))

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(ask_all())
    whole = [answer for answer in answers if answer is not None]
    return Measurement(tuple(whole[: len(sampled)]), tuple(whole[len(sampled) :]))


async def _ask(client: AsyncClient, item: Item, temperature: float) -> Answer:
    """Asks again for a while when the server is too busy to take the question."""
    for attempt in count(1):
        try:
            response = await client.chat(
                item.messages,
                persona=item.persona,
                temperature=temperature,
                may_train=False,
                timeout_seconds=_ANSWER_SECONDS,
            )
        except (ResourceExhausted, Unavailable) as error:
            if attempt == _ATTEMPTS:
                raise
            await asyncio.sleep(error.retry_after_seconds or _WAIT_SECONDS)
            continue
        break
    return Answer(item, response.text, judge_answer(item, response.text), response.policy_id, response.response_id)


def exchange_of(answer: Answer, at: float) -> Exchange:
    """The answer as something that was said, without a vote."""
    item = answer.item
    asked, wished = item.messages[-1]["content"], is_as_wished(answer.kind)
    return Exchange(at, item.persona, item.skill, asked, answer.text, answer.kind, answer.policy_id, wished, None)


def claims(answers: Iterable[Answer]) -> Proportion:
    """False claims among answers to errands."""
    kinds = [answer.kind for answer in answers]
    return Proportion(kinds.count(CLAIM), len(kinds))


def skills(before: Measurement, after: Measurement) -> tuple[SkillFigures, ...]:
    """Exact matches by skill, in the items' order."""
    names = dict.fromkeys(answer.item.skill for answer in before.greedy if answer.item.skill != ERRANDS_SKILL)
    return tuple(SkillFigures(name, _right(before, name), _right(after, name)) for name in names)


def _right(measurement: Measurement, skill: str) -> Proportion:
    kinds = [answer.kind for answer in measurement.greedy if answer.item.skill == skill]
    return Proportion(kinds.count(RIGHT), len(kinds))


def of_persona(measurement: Measurement, persona: str) -> tuple[Answer, ...]:
    return tuple(answer for answer in measurement.greedy if answer.item.persona == persona)


def compare_tokens(
    before: Sequence[Answer], after: Sequence[Answer], tokens: Mapping[str, Collection[int]]
) -> TutorFigures:
    """How many answers to the same items have the same tokens; `tokens` are output token ids by response.

    An answer whose tokens are not known counts as another one.
    """
    same = 0
    for first, second in zip(before, after, strict=True):
        known = first.response_id in tokens and second.response_id in tokens
        same += known and list(tokens[first.response_id]) == list(tokens[second.response_id])
    return TutorFigures(len(before), same)


def before_and_after(before: Measurement, after: Measurement, number: int) -> tuple[BeforeAndAfter, ...]:
    """Some questions with both answers: errands that were claimed before, then one of each other skill."""
    pairs = list(zip(before.greedy, after.greedy, strict=True))
    errands = [pair for pair in pairs if pair[0].item.skill == ERRANDS_SKILL and pair[0].kind == CLAIM]
    still = [pair for pair in errands if pair[1].kind == CLAIM]
    chosen = [*[pair for pair in errands if pair[1].kind != CLAIM][: number - bool(still)], *still[:1]]
    seen: set[str] = {ERRANDS_SKILL}
    for first, second in pairs:
        if first.item.skill not in seen:
            seen.add(first.item.skill)
            chosen.append((first, second))
    return tuple(
        BeforeAndAfter(
            first.item.skill, first.item.messages[-1]["content"], first.text, second.text, first.kind, second.kind
        )
        for first, second in chosen
    )
