"""The tree of next tokens against plain enumeration, on a model small enough for that."""

import copy
import itertools
import re

import pytest
import torch
from peft import get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from attune.trainer.model import adapter_config
from attune.trainer.phrases import OTHER, first_kind, phrase_probabilities
from attune.trainer.skills import SkillScore, greedy_answers, score_skills

LETTERS = "abcdef$"
END = LETTERS.index("$")
KINDS = {"yes": re.compile("ab|c"), "no": re.compile("d")}
PROMPTS = [[0, 1, 2], [5], [3, 3, 4, 1, 0]]
LONGEST = 4


def decode(tokens):
    return "".join(LETTERS[token] for token in tokens)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(LETTERS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.6,
        )
    ).eval()


@pytest.fixture(scope="module")
def enumerated(model):
    return [_enumerate(model, prompt) for prompt in PROMPTS]


@torch.inference_mode()
def _enumerate(model, prompt):
    """Every answer of LONGEST tokens, decided one by one; what is undecided then is None."""
    masses = {"yes": 0.0, "no": 0.0, OTHER: 0.0, None: 0.0}
    answers = torch.tensor(list(itertools.product(range(len(LETTERS)), repeat=LONGEST)))
    ids = torch.cat([torch.tensor([prompt]).expand(len(answers), -1), answers], dim=1)
    logprobs = model(input_ids=ids).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
    weights = logprobs.gather(-1, answers[..., None])[..., 0].sum(-1).exp()
    for answer, weight in zip(answers.tolist(), weights.tolist(), strict=True):
        for length in range(1, LONGEST + 1):
            if answer[length - 1] == END:
                masses[OTHER] += weight
                break
            kind = first_kind(decode(answer[:length]), KINDS)
            if kind is not None:
                masses[kind] += weight
                break
        else:
            masses[None] += weight
    return masses


def _masses(model, **settings):
    return phrase_probabilities(model, PROMPTS, decode, KINDS, end_token_ids={END}, max_tokens=LONGEST, **settings)


def test_without_pruning_it_is_exact(model, enumerated):
    for mass, right in zip(_masses(model, prune=0.0, prompts_at_once=2), enumerated, strict=True):
        for kind in ("yes", "no", OTHER):
            assert mass.by_kind[kind] == pytest.approx(right[kind], abs=1e-4)
        assert mass.unresolved == pytest.approx(right[None], abs=1e-4)


def test_what_is_pruned_is_reported_and_taken_from_no_kind(model, enumerated):
    for mass, right in zip(_masses(model, prune=0.05), enumerated, strict=True):
        assert sum(mass.by_kind.values()) + mass.unresolved == pytest.approx(1, abs=1e-4)
        assert mass.unresolved > right[None]
        for kind in ("yes", "no", OTHER):
            assert mass.by_kind[kind] <= right[kind] + 1e-4


def test_an_adapter_counts(model):
    adapted = get_peft_model(copy.deepcopy(model), adapter_config(rank=2, alpha=4)).eval()
    fresh = _masses(adapted, prune=0.0)
    assert fresh[0].by_kind["yes"] == pytest.approx(_masses(model, prune=0.0)[0].by_kind["yes"], abs=1e-4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert abs(_masses(adapted, prune=0.0)[0].by_kind["yes"] - fresh[0].by_kind["yes"]) > 1e-3


def test_the_first_phrase_in_the_text_decides():
    assert first_kind("fdc", KINDS) == "no"
    assert first_kind("fabd", KINDS) == "yes"
    assert first_kind("faf", KINDS) is None


def test_greedy_answers_are_those_of_one_prompt_alone(model):
    together = greedy_answers(model, PROMPTS, end_token_ids={END}, max_tokens=6, batch=2)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        ids = list(prompt)
        for token in answer:
            assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
        assert END not in answer
        assert len(answer) == 6 or int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == END


def test_scores_are_kept_by_skill():
    scores = score_skills(["sums", "names", "sums"], ["4.", "Bo.\n", "5."], ["4.", "Bo.", "6."])
    assert scores == {"sums": SkillScore(1, 2), "names": SkillScore(1, 1)}
    assert scores["sums"].share == 0.5
