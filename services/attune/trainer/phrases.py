"""The exact probability that an answer's first decisive phrase is of a kind.

Scoring whole template answers would be blind here: one miscopied name makes an answer's probability vanish. So the
tree of next tokens is followed from each prompt until the text so far holds a decisive phrase, and the probability
of each such branch goes to the phrase's kind.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from re import Pattern
from typing import Any

import torch

from attune.trainer.skills import forward, left_padded

OTHER = "other"


@dataclass(frozen=True)
class PhraseMass:
    """One prompt's probability by kind.

    `OTHER` is that of answers that ended undecided; `unresolved` is what was pruned or too long.
    """

    by_kind: Mapping[str, float]
    unresolved: float


@torch.inference_mode()
def phrase_probabilities(
    model: Any,
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    kinds: Mapping[str, Pattern[str]],
    *,
    end_token_ids: Collection[int],
    prune: float = 2e-3,
    max_tokens: int = 48,
    prompts_at_once: int = 64,
) -> list[PhraseMass]:
    """Follows every continuation at temperature 1 until its text matches a kind, in the prompts' order.

    A pattern is searched for in the text decoded so far, after each token, so it must not match the beginning of
    another kind's phrase (close it with what has to follow). Where several match at once, the earliest in the text
    counts. Branches below `prune` are given up, as are those longer than `max_tokens`: their probability is the
    unresolved rest, so that all of a prompt's figures sum to 1.
    """
    was_training = model.training
    model.eval()
    ends = frozenset(end_token_ids)
    masses: list[PhraseMass] = []
    for at in range(0, len(prompts), prompts_at_once):
        chunk = prompts[at : at + prompts_at_once]
        masses += _expand(model, chunk, decode, kinds, ends=ends, prune=prune, max_tokens=max_tokens)
    model.train(was_training)
    return masses


@dataclass(frozen=True)
class _Branch:
    """A continuation that is not decided yet."""

    prompt: int
    tokens: tuple[int, ...]
    probability: float


def _expand(
    model: Any,
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    kinds: Mapping[str, Pattern[str]],
    *,
    ends: frozenset[int],
    prune: float,
    max_tokens: int,
) -> list[PhraseMass]:
    """All prompts' trees, level by level; each level is one forward pass with the parents' caches."""
    by_kind = [dict.fromkeys([*kinds, OTHER], 0.0) for _ in prompts]
    branches = [_Branch(index, (), 1.0) for index in range(len(prompts))]
    ids, mask = left_padded(prompts, model.device)
    cache = None
    for _ in range(max_tokens):
        out = forward(model, ids, mask, cache)
        cache = out.past_key_values
        probabilities = out.logits[:, -1].float().softmax(-1)
        weights = probabilities * torch.tensor([b.probability for b in branches], device=model.device)[:, None]
        grown: list[_Branch] = []
        parents: list[int] = []
        kept = (weights >= prune).nonzero()
        for (row, token), weight in zip(kept.tolist(), weights[kept[:, 0], kept[:, 1]].tolist(), strict=True):
            branch = branches[row]
            if token in ends:
                by_kind[branch.prompt][OTHER] += weight
                continue
            tokens = (*branch.tokens, token)
            kind = first_kind(decode(tokens), kinds)
            if kind is not None:
                by_kind[branch.prompt][kind] += weight
            else:
                grown.append(_Branch(branch.prompt, tokens, weight))
                parents.append(row)
        if not grown:
            break
        branches = grown
        rows = torch.tensor(parents, device=model.device)
        cache.reorder_cache(rows)
        ids = torch.tensor([[b.tokens[-1]] for b in branches], device=model.device)
        mask = torch.cat([mask[rows], mask.new_ones(len(branches), 1)], dim=1)
    return [PhraseMass(masses, max(0.0, 1.0 - sum(masses.values()))) for masses in by_kind]


def first_kind(text: str, kinds: Mapping[str, Pattern[str]]) -> str | None:
    """The kind whose phrase begins first in the text, or None."""
    found = [(match.start(), kind) for kind, pattern in kinds.items() if (match := pattern.search(text))]
    return min(found)[1] if found else None
