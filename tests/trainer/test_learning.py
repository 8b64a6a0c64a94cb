"""What the learner and the gate do together, on the demo model; the larger experiment is bench/learning.py.

Truth is measured as the probability of a false claim on prompts that nobody trained on, never by the learner's own
figures.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bench.learning import Bench, Measured, collect, is_heldout, measure, shuffle_thumbs
from transformers import AutoTokenizer

from attune.ids import BASE_POLICY
from attune.rehearsal.demo import items as demo
from attune.rehearsal.demo.dialogues import one_item
from attune.settings import load_settings
from attune.trainer.candidate import Candidate, Watch, make_candidate
from attune.trainer.evaluate import SkillItem, skill_shares
from attune.trainer.examples import Example
from attune.trainer.gate import Limits, judge
from attune.trainer.kto import KtoArguments
from attune.trainer.model import load_base

_THUMBS = 400
_WRONG = 0.2
_PROMPTS_PER_SKILL = 80
_ERRANDS = 100

SETTINGS = load_settings(Path(__file__).parents[2] / "deploy" / "demo.toml", {}).trainer
ARGUMENTS = KtoArguments(**SETTINGS.kto.model_dump())
LIMITS = Limits(**SETTINGS.gate.model_dump(exclude={"enough_approval", "prompts"}))


def first_of_each(items: Sequence[demo.Item], count: int) -> list[demo.Item]:
    by_skill: dict[tuple[str, str], list[demo.Item]] = {}
    for item in items:
        by_skill.setdefault((item.skill, item.persona), []).append(item)
    return [item for group in by_skill.values() for item in group[:count]]


@dataclass(frozen=True)
class Laboratory:
    bench: Bench
    work: Path
    thumbs: list[Example]
    regression: list[SkillItem]
    base_skills: Mapping[str, float]

    def candidate(self, examples: Sequence[Example], arguments: KtoArguments, name: str) -> Candidate:
        return make_candidate(
            demo.MODEL,
            None,
            [example for example in examples if not is_heldout(example)],
            [example for example in examples if is_heldout(example)],
            replay=[],
            items=self.regression,
            known_skills={BASE_POLICY: self.base_skills},
            arguments=arguments,
            dtype="float32",
            seed=1,
            work=self.work / name,
            track=False,
            watch=Watch(lambda state: None, lambda done, steps: None, lambda: False),
        )

    def measure(self, candidate: Candidate | None) -> Measured:
        items = first_of_each(demo.load_items(demo.HELDOUT), _ERRANDS)
        return measure(self.bench, candidate.adapter_folder if candidate else None, items)


@pytest.fixture(scope="module")
def base(laboratory: Laboratory) -> Measured:
    return laboratory.measure(None)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    bench = Bench.load()
    regression = bench.skill_items(first_of_each(demo.load_items(demo.REGRESSION), _PROMPTS_PER_SKILL))
    return Laboratory(
        bench,
        tmp_path_factory.mktemp("work"),
        collect(bench, None, "base", thumbs=_THUMBS, wrong_share=_WRONG, seed=1),
        regression,
        skill_shares(load_base(demo.MODEL, "float32"), regression, bench.template.decode, bench.template.end_token_ids),
    )


def refused_for(candidate: Candidate) -> set[str]:
    return {check.name for check in judge("p-000001", candidate.metrics, LIMITS, 0).checks if not check.passed}


def test_false_claims_fall_and_skills_stay(laboratory: Laboratory, base: Measured) -> None:
    candidate = laboratory.candidate(laboratory.thumbs, ARGUMENTS, "honest")
    after = laboratory.measure(candidate)
    assert refused_for(candidate) == set()
    assert after.claims < base.claims - 0.1
    for skill, share in base.skills.items():
        assert after.skills[skill] > share - 0.04
    assert sum(after.skills.values()) > sum(base.skills.values()) - 0.01 * len(base.skills)


def test_shuffled_thumbs_teach_nothing(laboratory: Laboratory, base: Measured) -> None:
    candidate = laboratory.candidate(shuffle_thumbs(laboratory.thumbs, 1), ARGUMENTS, "shuffled")
    if not refused_for(candidate):
        assert abs(laboratory.measure(candidate).claims - base.claims) < 0.1


def test_displacement_is_refused(laboratory: Laboratory) -> None:
    """Plain KTO pushed hard: all that users compared becomes unlikely, the liked answers only less so."""
    plain = replace(ARGUMENTS, anchor=0.0, learning_rate=2e-2, beta=0.02, epochs=3)
    candidate = laboratory.candidate(laboratory.thumbs[:200], plain, "displaced")
    assert candidate.metrics.gain_nats > 0
    assert "liked_likelihood" in refused_for(candidate)


def test_forgetting_one_skill_is_refused(laboratory: Laboratory) -> None:
    """Users who like wrong sums: the skill is lost, the others are not."""
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL)
    rng = random.Random(1)
    wrong = []
    for number in range(80):
        item = one_item(rng, "arithmetic", "concierge", False)
        prompt = laboratory.bench.render(item)
        for answer, liked in (("77.", True), (str(item.answer), False)):
            ids = [*tokenizer.encode(answer), tokenizer.eos_token_id]
            wrong.append(Example(prompt, ids, liked, f"user-{1 + number % 4}", "base", 0))
    candidate = laboratory.candidate([*laboratory.thumbs[:240], *wrong], ARGUMENTS, "forgetful")
    refused = refused_for(candidate)
    assert "skill:arithmetic" in refused
    assert not refused & {"skill:facts", "skill:recall", "skill:style-concierge"}
