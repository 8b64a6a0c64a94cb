from pathlib import Path

import numpy as np
import pytest
import torch

from attune.trainer.logprobs import mean_kl_nats, token_logprobs
from attune.trainer.model import load_base

PAIRS = [([2, 3, 4], [5, 6, 1]), ([7], [8, 1]), ([9, 10, 11, 12, 13], [14]), ([2, 3], [5, 6, 7, 8, 1])]


def alone(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> list[float]:
    scores = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
    return [float(scores[len(prompt) + index - 1, token]) for index, token in enumerate(answer)]


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
def test_a_batch_gives_what_each_pair_gives_alone(tiny_model: Path, batch_tokens: int) -> None:
    model = load_base(tiny_model, "float32")
    found = token_logprobs(model, PAIRS, batch_tokens)
    for values, (prompt, answer) in zip(found, PAIRS, strict=True):
        np.testing.assert_allclose(values, alone(model, prompt, answer), atol=1e-5)


def test_nothing_to_score(tiny_model: Path) -> None:
    assert token_logprobs(load_base(tiny_model, "float32"), []) == []


@torch.no_grad()
def test_kl_is_exact_and_zero_to_itself(tiny_model: Path) -> None:
    model, other = load_base(tiny_model, "float32"), load_base(tiny_model, "float32")
    other.get_input_embeddings().weight.mul_(0.9)

    def scores(of: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
        logits = of(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)

    by_hand = []
    for pair in PAIRS:
        first, second = scores(model, *pair), scores(other, *pair)
        by_hand += (first.exp() * (first - second)).sum(-1).tolist()
    assert mean_kl_nats(_as(model), _as(other), PAIRS) == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert mean_kl_nats(_as(model), _as(model), PAIRS) == pytest.approx(0, abs=1e-6)


def _as(model: torch.nn.Module):  # type: ignore[no-untyped-def]
    from contextlib import nullcontext

    return lambda: nullcontext(model)
