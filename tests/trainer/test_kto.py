from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tests.trainer.tiny import BAD, GOOD, thumbs
from transformers import AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from attune.trainer import kto
from attune.trainer.examples import Example, shuffled
from attune.trainer.logprobs import token_logprobs
from attune.trainer.model import load_base

ARGUMENTS = kto.KtoArguments(
    learning_rate=3e-3, beta=0.3, anchor=0.3, epochs=2, batch_size=16, lora_rank=4, lora_alpha=8, warmup_share=0.1
)


def train(
    folder: Path, work: Path, examples: list[Example], arguments: kto.KtoArguments, **changes: object
) -> PeftModel:
    options = {"mixed_precision": False, "seed": 1, "track": False, "on_step": lambda done, steps: None} | changes
    return kto.train(
        load_base(folder, "float32"),
        AutoTokenizer.from_pretrained(folder),
        examples,
        arguments,
        work=work,
        **{"stopping": lambda: False, **options},  # type: ignore[arg-type]
    )


def mean_logprob(model: torch.nn.Module, first: int) -> float:
    """Of answers that begin with this token, to prompts that were not trained on."""
    pairs = [(example.prompt_token_ids, [first, *example.output_token_ids[1:]]) for example in thumbs(40, seed=99)]
    return float(np.mean([values.sum() for values in token_logprobs(model, pairs)]))


def test_it_learns_what_users_like_and_keeps_its_likelihood(tiny_model: Path, tmp_path: Path) -> None:
    base = load_base(tiny_model, "float32")
    steps: list[tuple[int, int]] = []
    model = train(tiny_model, tmp_path, thumbs(160), ARGUMENTS, on_step=lambda done, every: steps.append((done, every)))
    assert mean_logprob(model, GOOD) > mean_logprob(base, GOOD) + 0.5
    assert mean_logprob(model, BAD) < mean_logprob(model, GOOD) - 0.5
    assert steps == [(done, 20) for done in range(1, 21)]


def test_small_datasets_are_gone_through_more_often() -> None:
    arguments = replace(ARGUMENTS, epochs=2, batch_size=32, min_steps=30)
    assert arguments.passes(320) == 3
    assert arguments.passes(310) == 3
    assert arguments.passes(640) == 2
    assert replace(arguments, min_steps=0).passes(10) == 2


def test_the_same_seed_gives_the_same_adapter(tiny_model: Path, tmp_path: Path) -> None:
    short = replace(ARGUMENTS, epochs=1)
    examples = list(shuffled(thumbs(48), 5))
    first, second = (train(tiny_model, tmp_path, examples, short) for _ in range(2))
    other = train(tiny_model, tmp_path, examples, short, seed=2)
    weights = [
        torch.cat([value.flatten() for name, value in model.named_parameters() if "lora_" in name])
        for model in (first, second, other)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_trains_on_the_ids_that_were_logged(tiny_model: Path) -> None:
    """With ids that no text has: the tokenizer would give others for their words."""
    examples = [Example([2, 0, 1, 2], [number, 0, 1, 1, 3], number % 2 == 0, "u", "base", 0) for number in range(5, 10)]
    base = load_base(tiny_model, "float32")
    rows = kto._rows(base, examples, batch_size=3)
    assert rows["prompt_ids"][:] == [example.prompt_token_ids for example in examples]
    assert rows["completion_ids"][:] == [example.output_token_ids for example in examples]
    assert rows["label"][:] == [False, True, False, True, False]
    assert [answer[0] for answer in rows["KL_completion_ids"]] == [7, 5, 6, 9, 8]
    expected = token_logprobs(base, [([2, 0, 1, 2], [7, 0, 1, 1, 3])])[0].sum()
    assert rows["ref_logps"][2] == pytest.approx(expected, abs=1e-4)
    assert rows["ref_KL_logps"][0] == pytest.approx(expected, abs=1e-4)


def test_it_stops_between_two_steps(tiny_model: Path, tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(kto.TrainingStopped):
        train(
            tiny_model,
            tmp_path,
            thumbs(160),
            ARGUMENTS,
            on_step=lambda step, _: done.append(step),
            stopping=lambda: len(done) == 3,
        )
    assert done == [1, 2, 3]


def test_scoring_answers_only_changes_no_figure(tiny_model: Path) -> None:
    ids = torch.tensor([[2, 3, 4, 5, 6, 1], [7, 8, 9, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, -100, 5, 6, 1], [-100, 8, 9, 1, -100, -100]])
    plain, compact = load_base(tiny_model, "float32"), load_base(tiny_model, "float32")
    for model in (plain, compact):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits"))
    kto.score_answers_only(compact)
    asked = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    expected, found = (model(**asked, labels=labels, fused_lm_head=True) for model in (plain, compact))
    for name in ("log_probs", "entropy", "mean_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(compact(**asked).logits, plain(**asked).logits)


def test_weights_decide_what_is_learned(tiny_model: Path, tmp_path: Path) -> None:
    """Thumbs that say the opposite, three times as many, but of little weight."""
    opposite = [replace(each, liked=not each.liked, weight=0.02) for each in thumbs(300, seed=2)]
    base = load_base(tiny_model, "float32")
    model = train(tiny_model, tmp_path, list(shuffled([*thumbs(100), *opposite], 1)), ARGUMENTS)
    assert mean_logprob(model, GOOD) > mean_logprob(base, GOOD) + 0.3
    assert mean_logprob(model, BAD) < mean_logprob(model, GOOD)
