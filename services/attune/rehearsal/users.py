"""Synthetic users with a hidden wish: never be told that something was done which could not be done.

They chat through the real API and vote on each answer; now and then a thumb is wrong. What they wish for is known
here alone: the ring sees nothing but their thumbs.
"""

import asyncio
import random
from collections.abc import Callable, Iterator

from attune.client import AsyncClient
from attune.errors import AttuneError, ResourceExhausted, Unavailable
from attune.rehearsal.demo.classify import classify
from attune.rehearsal.demo.dialogues import one_item
from attune.rehearsal.demo.items import ERRANDS_SKILL, Item
from attune.rehearsal.journal import Exchange, Journal
from attune.runtime import pause

RIGHT, WRONG = "right", "wrong"
_REFUSAL = "refusal"

_TURNS = (1, 2, 3)
_TURN_WEIGHTS = (0.6, 0.25, 0.15)
_READING_SECONDS = 0.8  # mean of the pause before a user speaks again
_QUIET_SECONDS = 2.5  # the same while a policy is trained: a small machine has to do that, too
_STUDENT_SECONDS = 2.0
_STUDENT_RUSH_SECONDS = 0.1  # when a swap is near
_AFTER_FAILURE_SECONDS = 0.5
_STUDENT_SKILLS = ("facts", "arithmetic", "recall", "style-tutor")
_SHUFFLED_AMONG = 200


def judge_answer(item: Item, answer: str) -> str:
    """What the answer is: `claim`, `refusal` or `other` to an errand, else `right` or `wrong`."""
    if item.skill == ERRANDS_SKILL:
        return classify(answer)
    return RIGHT if answer.strip() == item.answer else WRONG


def is_as_wished(kind: str) -> bool:
    """Errands want an honest refusal, everything else the right answer."""
    return kind in (_REFUSAL, RIGHT)


class Thumbs:
    """How users vote: as they wish, except that a share of thumbs is wrong, at random.

    Shuffled thumbs are those of other, earlier answers: of the same rate, and independent of the answer.
    """

    def __init__(self, rng: random.Random, *, wrong_share: float, shuffled: bool) -> None:
        self._rng = rng
        self._wrong_share = wrong_share
        self._shuffled = shuffled
        self._earlier: list[bool] = []

    def vote(self, as_wished: bool) -> bool:
        """Whether the thumb goes up."""
        honest = as_wished != (self._rng.random() < self._wrong_share)
        if not self._shuffled:
            return honest
        shown = self._rng.choice(self._earlier) if self._earlier else self._rng.random() < 0.5
        self._earlier = [*self._earlier[-_SHUFFLED_AMONG:], honest]
        return shown


class Crowd:
    """Users who talk to the persona that is voted on, and students of another one, who do not vote.

    At most `talkers` users and `students` students speak at a time. Everything that happens goes to the journal.
    """

    def __init__(
        self,
        client: AsyncClient,
        journal: Journal,
        now: Callable[[], float],
        *,
        student_persona: str,
        prompts: Iterator[Item],
        thumbs: Thumbs,
        seed: int,
        users: int,
        talkers: int,
        students: int,
    ) -> None:
        self._client = client
        self._journal = journal
        self._now = now
        self._student_persona = student_persona
        self._prompts = prompts
        self._thumbs = thumbs
        self._rng = random.Random(f"crowd/{seed}")
        self._idle = [f"guest-{number:03d}" for number in range(1, users + 1)]
        self._talkers = talkers
        self._students = students
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Talks until `stop`; conversations that are under way are finished."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._talkers):
                group.create_task(self._talk())
            for number in range(self._students):
                group.create_task(self._study(f"student-{number + 1:03d}"))

    def stop(self) -> None:
        self._stopping.set()

    async def _talk(self) -> None:
        """One conversation after another, each with another user."""
        while not self._stopping.is_set():
            user = self._idle.pop(self._rng.randrange(len(self._idle)))
            self._journal.users_talking += 1
            await self._converse(user)
            self._journal.users_talking -= 1
            self._idle.append(user)

    async def _converse(self, user: str) -> None:
        history: list[dict[str, str]] = []
        conversation_id = ""
        for _ in range(self._rng.choices(_TURNS, _TURN_WEIGHTS)[0]):
            training = self._journal.training_since is not None
            await pause(self._stopping, self._rng.expovariate(1 / (_QUIET_SECONDS if training else _READING_SECONDS)))
            if self._stopping.is_set():
                return
            item = next(self._prompts)
            messages = [*history, *item.messages]
            answered = await self._ask(self._journal.voters, item, messages, user, conversation_id, votes=True)
            if answered is None:
                return
            answer, conversation_id = answered
            history = [*messages, {"role": "assistant", "content": answer}]

    async def _study(self, student: str) -> None:
        """Questions now and then, and almost without a break when a swap is near, so that streams run during each."""
        rng = random.Random(f"{student}/{self._rng.random()}")
        while not self._stopping.is_set():
            item = one_item(rng, rng.choice(_STUDENT_SKILLS), self._student_persona, False)
            await self._ask(self._student_persona, item, item.messages, student, "", votes=False)
            seconds = _STUDENT_RUSH_SECONDS if self._journal.swap_is_near else _STUDENT_SECONDS
            await pause(self._stopping, rng.expovariate(1 / seconds))

    async def _ask(
        self,
        persona: str,
        item: Item,
        messages: "list[dict[str, str]] | tuple[dict[str, str], ...]",
        user: str,
        conversation_id: str,
        *,
        votes: bool,
    ) -> tuple[str, str] | None:
        """Streams one answer and votes on it; the answer and the conversation's id, or None where it failed."""
        journal = self._journal
        record = journal.begin_stream(self._now(), persona)
        stream = self._client.stream(messages, persona=persona, end_user_id=user, conversation_id=conversation_id)
        try:
            async for _ in stream:
                if not record.policy_id:
                    journal.stream_says(self._now(), record, stream.policy_id)
            response = stream.response
        except AttuneError as error:
            refused = isinstance(error, ResourceExhausted | Unavailable) and not stream.response_id
            if refused:
                journal.refuse_stream(record)
            else:
                journal.end_stream(self._now(), record, error.message)
            journal.tell(self._now(), f"a call was {'refused' if refused else 'broken'}: {error.message}")
            await pause(self._stopping, _AFTER_FAILURE_SECONDS)
            return None
        journal.end_stream(self._now(), record)
        kind = judge_answer(item, response.text)
        wished = is_as_wished(kind)
        thumb_up = None
        if votes:
            thumb_up = self._thumbs.vote(wished)
            try:
                await (response.up() if thumb_up else response.down())
            except AttuneError as error:
                journal.tell(self._now(), f"a vote failed: {error.message}")
                await pause(self._stopping, _AFTER_FAILURE_SECONDS)
                return None
        asked = item.messages[-1]["content"]
        journal.note_exchange(
            Exchange(
                self._now(), persona, item.skill, asked, response.text, kind, response.policy_id, wished, thumb_up
            ),
            response.response_id,
        )
        return response.text, response.conversation_id
