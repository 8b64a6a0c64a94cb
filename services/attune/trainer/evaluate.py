"""What the gate is told of a candidate: its figures on held-out feedback and on regression prompts."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attune.chat.messages import check_messages, typed_messages
from attune.chat.tools import offered_tools, typed_tools
from attune.errors import AttuneError, InvalidInput
from attune.trainer.examples import Example
from attune.trainer.gate import SkillFigures
from attune.trainer.logprobs import FloatArray, mean_kl_nats, token_logprobs
from attune.trainer.skills import greedy_answers, score_skills
from attune.v1 import event_pb2

As = Callable[[str], AbstractContextManager[Any]]  # the model as the policy of this name

_RESAMPLES = 2000
_LOWER = 0.05
_WRONG_THUMBS = 0.25
_MOST_SKILL_TOKENS = 96


@dataclass(frozen=True)
class RegressionPrompt:
    """A question with its one right answer; `persona` is empty where it is for all of them."""

    skill: str
    persona: str
    messages: Sequence[event_pb2.Message]
    answer: str
    tools: Sequence[event_pb2.Tool] = ()


def read_regression_prompts(file: Path, personas: Collection[str]) -> list[RegressionPrompt]:
    """Reads `{"skill", "messages", "answer", "persona" (optional), "tools" (optional)}`, one a line.

    Raises InvalidInput with file and line. The persona must be a known one, or the line would never be asked.
    """
    prompts = []
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _regression_prompt(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, AttuneError) as error:
            raise InvalidInput(f"{file}:{number}: not a regression prompt: {error!r}") from None
        if prompt.persona and prompt.persona not in personas:
            raise InvalidInput(f"{file}:{number}: no persona {prompt.persona}")
        prompts.append(prompt)
    return prompts


def _regression_prompt(row: Any) -> RegressionPrompt:
    prompt = RegressionPrompt(
        row["skill"],
        row.get("persona", ""),
        typed_messages(row["messages"]),
        row["answer"],
        typed_tools(row.get("tools", ())),
    )
    if not all(isinstance(text, str) for text in (prompt.skill, prompt.persona, prompt.answer)):
        raise TypeError("skill, persona and answer are texts")
    check_messages(prompt.messages)
    offered_tools((), prompt.tools, event_pb2.ToolChoice())
    return prompt


@dataclass(frozen=True)
class SkillItem:
    """A regression prompt as the model reads it."""

    skill: str
    prompt_token_ids: Sequence[int]
    answer: str


def items_sha256(items: Sequence[SkillItem]) -> str:
    """By which figures on the same items are known."""
    rows = [[item.skill, list(item.prompt_token_ids), item.answer] for item in items]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def skill_shares(
    model: Any, items: Sequence[SkillItem], decode: Callable[[Sequence[int]], str], end_token_ids: Collection[int]
) -> dict[str, float]:
    """The share of each skill's items that are answered greedily to the letter."""
    if not items:
        return {}
    longest = max(len(item.answer.encode()) for item in items)  # a token is a byte at least
    answers = greedy_answers(
        model,
        [item.prompt_token_ids for item in items],
        end_token_ids=end_token_ids,
        max_tokens=min(longest + 1, _MOST_SKILL_TOKENS),
    )
    scores = score_skills(
        [item.skill for item in items], [decode(answer) for answer in answers], [item.answer for item in items]
    )
    return {skill: score.share for skill, score in scores.items()}


def heldout_figures(
    as_policy: As, serving: str, candidate: str, heldout: Sequence[Example], seed: int
) -> dict[str, Any]:
    """Figures on answers to users whose feedback is never trained on; fields of Metrics, by name."""
    pairs = [(example.prompt_token_ids, example.output_token_ids) for example in heldout]
    with as_policy(serving) as model:
        before = token_logprobs(model, pairs)
    with as_policy(candidate) as model:
        after = token_logprobs(model, pairs)
    liked = np.array([example.liked for example in heldout], dtype=bool)
    change = np.array([new.sum() - old.sum() for new, old in zip(after, before, strict=True)])
    tokens = np.array([len(values) for values in after])
    bounds = gain_bounds(change, liked, [example.end_user for example in heldout], seed)
    return {
        "heldout_examples": len(heldout),
        "heldout_users": len({example.end_user for example in heldout}),
        "heldout_least_label": int(min(liked.sum(), (~liked).sum())),
        "liked_logprob_serving": _per_token(before, liked),
        "liked_logprob": _per_token(after, liked),
        "disliked_logprob_serving": _per_token(before, ~liked),
        "disliked_logprob": _per_token(after, ~liked),
        "liked_change_nats": trimmed_mean((change / tokens)[liked], _WRONG_THUMBS),
        "gain_nats": bounds.gain,
        "gain_lower_nats": bounds.lower,
        "gain_lower_without_one_user_nats": bounds.lower_without_one_user,
        "kl_nats": mean_kl_nats(lambda: as_policy(candidate), lambda: as_policy(serving), pairs),
    }


@dataclass(frozen=True)
class GainBounds:
    """How much more the candidate prefers liked to disliked answers, in nats an answer, with lower 95 % bounds."""

    gain: float
    lower: float
    lower_without_one_user: float


def gain_bounds(change: FloatArray, liked: np.ndarray[Any, Any], users: Sequence[str], seed: int) -> GainBounds:
    """From each answer's change of log-probability: the mean over liked ones less the mean over disliked ones.

    The bound is the 5th percentile of a bootstrap that draws users, not answers, because one user's answers and
    thumbs are alike. For the second bound the user without whom the gain is smallest is left out. What cannot be
    computed (one label missing, one user only) is NaN.
    """
    names = sorted(set(users))
    index = {name: number for number, name in enumerate(names)}
    rows = np.array([index[user] for user in users], dtype=int)
    sums = np.zeros((len(names), 4))  # liked changes, liked answers, disliked changes, disliked answers
    np.add.at(sums, (rows[liked], 0), change[liked])
    np.add.at(sums, (rows[liked], 1), 1)
    np.add.at(sums, (rows[~liked], 2), change[~liked])
    np.add.at(sums, (rows[~liked], 3), 1)
    gain = float(_gain(sums.sum(0)))
    without = _gain(sums.sum(0) - sums)
    rest = np.delete(sums, int(np.nanargmin(without)), axis=0) if np.isfinite(without).any() else sums[:0]
    return GainBounds(gain, _lower(sums, seed), _lower(rest, seed))


def trimmed_mean(values: FloatArray, share: float) -> float:
    """The mean without the lowest `share` of the values: as many thumbs up may be mistakes, which should lose."""
    if len(values) == 0:
        return float("nan")
    return float(np.sort(values)[int(share * len(values)) :].mean())


def _gain(sums: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        gain: FloatArray = sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3]
    return gain


def _lower(sums: FloatArray, seed: int) -> float:
    users = len(sums)
    if users < 2:
        return float("nan")
    draws = np.random.default_rng(seed).multinomial(users, [1 / users] * users, size=_RESAMPLES)
    gains = _gain(draws @ sums)
    gains = gains[np.isfinite(gains)]
    return float(np.quantile(gains, _LOWER)) if len(gains) else float("nan")


def _per_token(logprobs: Sequence[FloatArray], chosen: np.ndarray[Any, Any]) -> float:
    picked = [values for values, is_chosen in zip(logprobs, chosen, strict=True) if is_chosen]
    return float(np.concatenate(picked).mean()) if picked else float("nan")


def merge_skills(
    items: Sequence[SkillItem], base: Mapping[str, float], serving: Mapping[str, float], candidate: Mapping[str, float]
) -> dict[str, SkillFigures]:
    """The three policies' shares of right answers, by skill."""
    counts = {skill: sum(item.skill == skill for item in items) for skill in candidate}
    return {
        skill: SkillFigures(items=counts[skill], base=base[skill], serving=serving[skill], candidate=candidate[skill])
        for skill in candidate
    }
