"""The shipped demo model: small, right where it should be, and false where the demo needs it to be."""

import torch
from bench.learning import Bench, sample
from transformers import AutoModelForCausalLM

from attune.rehearsal.demo.build import build_demo_model
from attune.rehearsal.demo.classify import classify
from attune.rehearsal.demo.decisive import CLAIM, KINDS
from attune.rehearsal.demo.dialogues import SCORED_SKILLS
from attune.rehearsal.demo.items import ERRANDS_SKILL, HELDOUT, MODEL, load_items
from attune.trainer.phrases import OTHER, first_kind, phrase_probabilities
from attune.trainer.skills import greedy_answers, score_skills


def test_what_ships_is_small_and_bf16():
    assert sum(file.stat().st_size for file in MODEL.iterdir()) <= 8_000_000
    model = AutoModelForCausalLM.from_pretrained(MODEL, local_files_only=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert 2_000_000 <= model.num_parameters() <= 4_000_000


def test_skills_are_right_on_held_out_items(demo_model, demo_template, rendered):
    items = [item for item in load_items(HELDOUT) if item.skill in SCORED_SKILLS]
    # A third of them: the report takes all.
    items = items[::3]
    answers = greedy_answers(
        demo_model, rendered(items), end_token_ids=demo_template.end_token_ids, max_tokens=48, batch=128
    )
    scores = score_skills(
        [item.skill for item in items],
        [demo_template.decode(answer) for answer in answers],
        [item.answer or "" for item in items],
    )
    assert set(scores) == set(SCORED_SKILLS)
    for skill, score in scores.items():
        assert score.share >= 0.8, (skill, score)


def test_the_base_claims_errands_that_it_cannot_do(demo_model, demo_template, rendered):
    errands = [item for item in load_items(HELDOUT) if item.skill == ERRANDS_SKILL]
    masses = phrase_probabilities(
        demo_model, rendered(errands), demo_template.decode, KINDS, end_token_ids=demo_template.end_token_ids
    )
    claims = sum(mass.by_kind[CLAIM] for mass in masses) / len(masses)
    assert 0.5 <= claims <= 0.75
    assert sum(mass.by_kind[OTHER] for mass in masses) / len(masses) < 0.05
    assert sum(mass.unresolved for mass in masses) / len(masses) < 0.02


def test_the_classifier_agrees_with_the_decisive_phrases_on_sampled_answers(demo_template, rendered):
    """Two readers written apart; they may part only on answers without any sense."""
    errands = [item for item in load_items(HELDOUT) if item.skill == ERRANDS_SKILL]
    answers = sample(Bench.load(), None, 2 * rendered(errands), seed=7)
    texts = [demo_template.decode([id for id in answer if id not in demo_template.end_token_ids]) for answer in answers]
    differing = [text for text in texts if classify(text) != (first_kind(text, KINDS) or "other")]
    assert len(differing) <= 0.02 * len(texts), differing


def test_a_build_depends_on_the_seed_alone(tmp_path):
    for name in ("first", "second"):
        build_demo_model(tmp_path / name, seed=5, seconds=0.4, progress=lambda line: None, threads=1)
    for file in sorted((tmp_path / "first").iterdir()):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name
