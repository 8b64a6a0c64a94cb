"""Log-probabilities of given answers, by token."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of an answer to it
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

_BATCH_TOKENS = 4096


@torch.inference_mode()
def token_logprobs(model: Any, pairs: Sequence[Pair], batch_tokens: int = _BATCH_TOKENS) -> list[FloatArray]:
    """For each pair the natural log-probability of each of the answer's tokens, at temperature 1.

    Pairs of like length share a forward pass of at most `batch_tokens` tokens, padding included.
    """
    found: list[FloatArray] = [np.empty(0)] * len(pairs)
    for batch in _batches(pairs, batch_tokens):
        scores, ids, answered = _answer_scores(model, [pairs[index] for index in batch])
        picked = scores.gather(-1, ids[:, 1:][answered][:, None])[:, 0].double().cpu().numpy()
        ends = np.cumsum([len(pairs[index][1]) for index in batch])
        for index, values in zip(batch, np.split(picked, ends[:-1]), strict=True):
            found[index] = values
    return found


@torch.inference_mode()
def mean_kl_nats(model: Any, other: Any, pairs: Sequence[Pair], batch_tokens: int = _BATCH_TOKENS) -> float:
    """KL(model || other) of the next token, exact at each position of the answers, averaged over positions.

    Both are callables that return the model to ask, so that one set of weights can be both in turn.
    """
    total, positions = 0.0, 0
    for batch in _batches(pairs, batch_tokens):
        chosen = [pairs[index] for index in batch]
        with model() as first:
            scores, _, answered = _answer_scores(first, chosen)
        with other() as second:
            others, _, _ = _answer_scores(second, chosen)
        total += float((scores.exp() * (scores - others)).sum())
        positions += int(answered.sum())
    return total / max(positions, 1)


def _batches(pairs: Sequence[Pair], batch_tokens: int) -> Iterator[list[int]]:
    by_length = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    batch: list[int] = []
    for index in by_length:
        width = len(pairs[index][0]) + len(pairs[index][1])
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _answer_scores(model: Any, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax (answers' tokens, vocabulary), ids (pairs, tokens), and where ids[:, 1:] are answers' tokens."""
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    answered = torch.zeros(len(pairs), width, dtype=torch.bool)
    mask = torch.zeros(len(pairs), width, dtype=torch.long)
    for row, (prompt, answer) in enumerate(pairs):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor([*prompt, *answer])
        mask[row, :length] = 1
        answered[row, len(prompt) : length] = True
    ids, answered, mask = ids.to(model.device), answered[:, 1:].to(model.device), mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return logits[answered].float().log_softmax(-1), ids, answered
