"""What is held out stays held out."""

import itertools
import random
import re

import pytest

from attune.personas.persona import load_personas
from attune.rehearsal.demo import words
from attune.rehearsal.demo.build import REPLAY_PER_SKILL
from attune.rehearsal.demo.dialogues import SCORED_SKILLS, TOOL_SKILLS, training_dialogue
from attune.rehearsal.demo.errands import ERRANDS, HELDOUT_FRAMES, TRAINED_FRAMES
from attune.rehearsal.demo.items import ERRANDS_SKILL, HELDOUT, PERSONAS, REGRESSION, REPLAY, load_items
from attune.rehearsal.demo.prompts import likes, user_prompts


@pytest.mark.parametrize("file", [REGRESSION, HELDOUT], ids=lambda file: file.stem)
def test_each_skill_has_at_least_200_items(file):
    skills = [item.skill for item in load_items(file)]
    for skill in (*SCORED_SKILLS, *TOOL_SKILLS):
        assert skills.count(skill) >= 200


def test_the_gate_and_the_report_ask_different_things():
    gate, report = load_items(REGRESSION), load_items(HELDOUT)
    assert not {_key(item) for item in gate} & {_key(item) for item in report}
    assert sum(item.skill == ERRANDS_SKILL for item in report) >= 120
    assert not any(item.skill == ERRANDS_SKILL for item in gate)


def test_errand_templates_are_on_one_side_only():
    assert not set(TRAINED_FRAMES) & set(HELDOUT_FRAMES)
    for errand in ERRANDS:
        assert not set(errand.trained) & set(errand.heldout)


def test_made_up_words_are_on_one_side_only():
    rng = random.Random(3)
    assert not any(words.is_heldout(words.made_up(rng, False)) for _ in range(2000))
    assert all(words.is_heldout(words.made_up(rng, True)) for _ in range(200))


def test_neither_training_nor_users_meet_a_held_out_errand():
    report = {item.messages[-1]["content"] for item in load_items(HELDOUT) if item.skill == ERRANDS_SKILL}
    rng = random.Random(4)
    trained = {turn.user for _ in range(3000) for turn in training_dialogue(rng, 2).turns}
    sent = {item.messages[-1]["content"] for item in itertools.islice(user_prompts(1), 3000)}
    assert not report & (trained | sent)


def test_user_prompts_follow_from_the_seed_and_mix_skills():
    first, again, other = (list(itertools.islice(user_prompts(seed), 300)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert 0.5 < sum(item.skill == ERRANDS_SKILL for item in first) / 300 < 0.7
    assert {item.persona for item in first} == {"concierge"}


def test_users_like_right_answers_to_all_that_is_no_errand():
    for item in itertools.islice(user_prompts(5), 2000):
        if item.answer is not None:
            assert likes(item, item.answer), item


def test_both_personas_load():
    personas = load_personas(PERSONAS)
    assert set(personas) == {"concierge", "tutor"}
    for persona in personas.values():
        assert (persona.sampling.temperature, persona.sampling.top_p, persona.sampling.max_tokens) == (0.8, 1.0, 64)
        assert re.search(r"\w", persona.guidelines)


def _key(item):
    return item.persona, str(item.tools), str(item.messages)


def test_what_is_gone_over_again_is_never_what_is_asked_at_the_gate_or_in_the_report() -> None:
    replay = {str((item.persona, item.messages)) for item in load_items(REPLAY)}
    asked = {str((item.persona, item.messages)) for file in (REGRESSION, HELDOUT) for item in load_items(file)}
    assert len(replay) == REPLAY_PER_SKILL * len(SCORED_SKILLS)
    assert not replay & asked
    assert all(item.answer is not None for item in load_items(REPLAY))
