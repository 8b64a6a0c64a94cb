import json
from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pytest
from tests.trainer.tiny import dataset_of, thumbs

from attune.chat.messages import typed_messages
from attune.chat.model import model_hash
from attune.chat.template import ChatTemplate
from attune.clock import now_unix_ms
from attune.keys import PolicySigner, PolicyVerifier
from attune.lake.erased import Erased
from attune.personas.persona import Persona, read_persona
from attune.registry.policies import Registry
from attune.registry.rollouts import RolloutEntry, RolloutLog
from attune.registry.verdict import Verdict
from attune.trainer.candidate import Watch
from attune.trainer.cycle import Cycles
from attune.trainer.evaluate import RegressionPrompt
from attune.trainer.gate import Limits
from attune.trainer.kto import KtoArguments, TrainingStopped
from attune.trainer.logprobs import token_logprobs
from attune.trainer.model import load_adapter, load_base
from attune.trainer.tracking import open_tracking
from attune.v1 import event_pb2

CONCIERGE = Persona(name="concierge", system_prompt="w2")
QUIET = Watch(lambda state: None, lambda done, steps: None, lambda: False)


class Killed(BaseException):
    """As sudden as kill -9: nothing catches it."""


@pytest.fixture(scope="module", autouse=True)
def _tracking(tmp_path_factory: pytest.TempPathFactory) -> None:
    open_tracking(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


@pytest.fixture
def cycles(tiny_model: Path, tmp_path: Path) -> Cycles:
    signer = PolicySigner.load_or_create(tmp_path / "keys")
    return Cycles(
        folder=tmp_path / "trainer",
        datasets=tmp_path / "datasets",
        base_folder=tiny_model,
        base_model_hash=model_hash(tiny_model),
        template=ChatTemplate.load(tiny_model),
        registry=Registry(tmp_path / "registry", PolicyVerifier.load_or_create(tmp_path / "keys")),
        rollouts=RolloutLog(tmp_path / "registry"),
        signer=signer,
        regression=[
            RegressionPrompt("words", persona, typed_messages([{"role": "user", "content": "w3 w4"}]), "w5")
            for persona in ("", "concierge", "tutor")
        ],
        replay=[RegressionPrompt("words", "", typed_messages([{"role": "user", "content": "w1 w2"}]), "w3")] * 5,
        replay_share=0.05,
        arguments=KtoArguments(
            learning_rate=3e-3, beta=0.3, anchor=0.3, epochs=1, batch_size=16, lora_rank=4, lora_alpha=8, warmup_share=0
        ),
        limits=Limits(
            min_train=50,
            min_heldout=20,
            min_share_of_label=0.05,
            max_liked_drop_nats=0.05,
            max_skill_drop=0.03,
            max_skills_drop=0.01,
        ),
        enough_approval=0.72,
        dtype="float32",
        seed=1,
        now_unix_ms=now_unix_ms,
    )


def run(cycles: Cycles, table: pa.Table, dataset_id: str = "d-1", watch: Watch = QUIET):  # type: ignore[no-untyped-def]
    return cycles.run(CONCIERGE, dataset_id, lambda: table, watch)


@pytest.fixture(scope="module")
def feedback(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return dataset_of(tmp_path_factory.mktemp("datasets"), thumbs(160), model_hash(tiny_model)).table()


def test_a_dataset_becomes_a_policy_that_may_serve(cycles: Cycles, feedback: pa.Table) -> None:
    states: list[str] = []
    outcome = run(cycles, feedback, watch=replace(QUIET, on_state=states.append))
    assert (outcome.outcome, outcome.policy_id, outcome.reason) == ("passed", "p-000001", "every check passed")
    assert list(dict.fromkeys(states)) == ["training", "evaluating", "publishing"]
    assert cycles.outcomes.read("d-1") == outcome
    manifest = cycles.registry.verify("p-000001", base_model_hash=cycles.base_model_hash)
    assert manifest.dataset_ids == ("d-1",)
    assert manifest.parent_policy_id == ""
    assert manifest.training["learner"] == "kto"
    assert manifest.training["serving_policy_id"] == "base"
    assert manifest.metrics["gain_lower_nats"] > 0
    assert manifest.metrics["skills.words.items"] == 2  # the tutor's prompt is not asked
    assert not list((cycles.folder / "work" / "default.concierge").iterdir())
    (run_of_it,) = mlflow.search_runs(filter_string="tags.dataset_id = 'd-1'", output_format="list")
    (told,) = run_of_it.inputs.dataset_inputs
    assert (told.dataset.name, told.dataset.digest) == ("default/concierge", "d-1")
    assert str(cycles.datasets / "d-1") in told.dataset.source


def test_the_probe_tells_the_policy_from_the_base(cycles: Cycles, feedback: pa.Table, tmp_path: Path) -> None:
    run(cycles, feedback)
    manifest = cycles.registry.read("p-000001")
    assert 1 <= len(manifest.probe) <= 8
    cycles.registry.copy_out(manifest, tmp_path / "copy")
    model = load_adapter(load_base(cycles.base_folder, "float32"), tmp_path / "copy", "policy")
    found = token_logprobs(model, [(probe.prompt_token_ids, probe.output_token_ids) for probe in manifest.probe])
    told = np.concatenate([probe.logprobs for probe in manifest.probe])
    of_base = np.concatenate([probe.base_logprobs for probe in manifest.probe])
    assert np.abs(np.concatenate(found) - told).mean() < 0.05
    assert np.abs(of_base - told).mean() > 0.05


def test_the_next_candidate_is_held_against_the_policy_that_serves(cycles: Cycles, tmp_path: Path) -> None:
    base_hash = cycles.base_model_hash
    first = thumbs(160)
    run(cycles, dataset_of(tmp_path / "d", first, base_hash).table())
    cycles.rollouts.append(RolloutEntry(1, "default", "concierge", (("p-000001", 1.0),), "gate", "", 0))
    more = [*first, *thumbs(80, seed=2, policy_id="p-000001")]
    outcome = run(cycles, dataset_of(tmp_path / "d", more, base_hash).table(), "d-2")
    manifest = cycles.registry.read("p-000002")
    assert outcome.policy_id == "p-000002"
    assert manifest.training["serving_policy_id"] == "p-000001"
    before = cycles.registry.read("p-000001").metrics
    assert manifest.metrics["liked_logprob_serving"] == pytest.approx(before["liked_logprob"], abs=0.3)
    assert manifest.metrics["skills.words.serving"] == before["skills.words.candidate"]


def test_a_refused_candidate_is_published_with_its_verdict(cycles: Cycles, tmp_path: Path) -> None:
    """Thumbs that do not depend on the answer."""
    examples = [replace(example, liked=number % 2 == 0) for number, example in enumerate(thumbs(160))]
    outcome = run(cycles, dataset_of(tmp_path, examples, cycles.base_model_hash).table())
    assert outcome.outcome == "refused"
    verdict = cycles.registry.read_verdict(outcome.policy_id)
    assert not verdict.passed
    assert outcome.reason == "; ".join(check.reason for check in verdict.checks if not check.passed)


@pytest.mark.parametrize(
    ("examples", "reason"),
    [
        (thumbs(30), "examples to train on; at least 50 are needed"),
        ([replace(example, end_user="u1") for example in thumbs(160)], "0 held-out examples; at least 20 are needed"),
        ([replace(example, liked=True) for example in thumbs(160)], "the rarer thumb makes up 0.0%"),
        (thumbs(400, approving=0.99), "little is left to learn: 91.0% of 400 thumbs on base are up"),
    ],
)
def test_nothing_is_trained_where_nothing_can_be_learnt(
    cycles: Cycles,
    tmp_path: Path,
    examples: list,
    reason: str,  # type: ignore[type-arg]
) -> None:
    outcome = run(cycles, dataset_of(tmp_path, examples, cycles.base_model_hash).table())
    assert (outcome.outcome, outcome.policy_id) == ("skipped", "")
    assert reason in outcome.reason
    assert cycles.registry.ids() == ()


def test_answers_of_another_base_model_are_not_trained_on(cycles: Cycles, tmp_path: Path) -> None:
    outcome = run(cycles, dataset_of(tmp_path, thumbs(160), "another").table())
    assert "0 examples to train on" in outcome.reason


def test_damaged_data_fails_the_cycle(cycles: Cycles, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, thumbs(160), cycles.base_model_hash)
    part = next(dataset.folder.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    outcome = cycles.run(CONCIERGE, "d-1", dataset.table, QUIET)
    assert outcome.outcome == "failed"
    assert "damaged" in outcome.reason


def _at(state: str) -> Watch:
    def enter(entered: str) -> None:
        if entered == state:
            raise Killed

    return replace(QUIET, on_state=enter)


def _at_step(step: int) -> Watch:
    def count(done: int, steps: int) -> None:
        if done == step:
            raise Killed

    return replace(QUIET, on_step=count)


class DyingRegistry(Registry):
    """Dies before or after one call, once."""

    dies_at = ""

    def _maybe_die(self, point: str) -> None:
        if self.dies_at == point:
            self.dies_at = ""
            raise Killed

    def claim(self, tenant: str, persona: str) -> str:
        policy_id = super().claim(tenant, persona)
        self._maybe_die("claimed")
        return policy_id

    def publish(self, manifest, adapter_folder, signer):  # type: ignore[no-untyped-def]
        published = super().publish(manifest, adapter_folder, signer)
        self._maybe_die("published")
        return published

    def write_verdict(self, verdict: Verdict, signer: PolicySigner) -> None:
        super().write_verdict(verdict, signer)
        self._maybe_die("judged")


@pytest.mark.parametrize(
    ("point", "policies"),
    [
        ("training", 1),
        ("step", 1),
        ("evaluating", 1),
        ("publishing", 1),
        ("claimed", 2),
        ("published", 1),
        ("judged", 1),
    ],
)
def test_killed_anywhere_it_ends_the_same(
    cycles: Cycles, feedback: pa.Table, tmp_path: Path, point: str, policies: int
) -> None:
    """A claimed id may be lost; a policy is never there without all that belongs to it, nor twice."""
    registry = DyingRegistry(tmp_path / "registry", PolicyVerifier.load_or_create(tmp_path / "keys"))
    registry.dies_at = point
    watches: dict[str, Watch] = {"step": _at_step(3), **{s: _at(s) for s in ("training", "evaluating", "publishing")}}
    with pytest.raises(Killed):
        run(replace(cycles, registry=registry), feedback, watch=watches.get(point, QUIET))
    assert cycles.outcomes.read("d-1") is None
    for policy_id in cycles.registry.ids():
        cycles.registry.check(policy_id)
    outcome = run(cycles, feedback)
    assert outcome.outcome == "passed"
    assert cycles.registry.ids() == (f"p-{policies:06d}",)
    assert cycles.registry.read_verdict(outcome.policy_id).passed


def test_a_cycle_that_always_dies_is_given_up(cycles: Cycles, feedback: pa.Table) -> None:
    for _ in range(5):
        with pytest.raises(Killed):
            run(cycles, feedback, watch=_at("training"))
    outcome = run(cycles, feedback)
    assert outcome.outcome == "failed"
    assert "started 5 times" in outcome.reason


def test_a_stop_is_no_death(cycles: Cycles, feedback: pa.Table) -> None:
    for _ in range(6):
        with pytest.raises(TrainingStopped):
            run(cycles, feedback, watch=replace(QUIET, stopping=lambda: True))
    assert run(cycles, feedback).outcome == "passed"


def test_regression_prompts_are_asked_as_the_persona_is_served_with_its_tools(
    cycles: Cycles, template: ChatTemplate
) -> None:
    text = 'system_prompt = "Be brief."\n[[tools]]\nname = "call_cab"\ndescription = "Ours."'
    persona = read_persona(text, "", name="concierge")
    messages = typed_messages([{"role": "user", "content": "A cab, please."}])
    same, other = event_pb2.Tool(name="call_cab", description="Theirs."), event_pb2.Tool(name="send_mail")
    prompt = RegressionPrompt("tools", "", messages, "done", [same, other])
    (item,) = replace(cycles, template=template, regression=[prompt])._skill_items(persona)
    assert item.prompt_token_ids == template.render("Be brief.", messages, [*persona.offered_tools, other])


def test_one_cycle_at_a_time_for_each_persona(cycles: Cycles) -> None:
    tutor = replace_name(CONCIERGE, "tutor")
    with cycles.lease(CONCIERGE) as first, cycles.lease(CONCIERGE) as second, cycles.lease(tutor) as other:
        assert (first, second, other) == (True, False, True)
    with cycles.lease(CONCIERGE) as again:
        assert again


def replace_name(persona: Persona, name: str) -> Persona:
    return persona.model_copy(update={"name": name})


def erase(cycles: Cycles, dataset_id: str) -> None:
    folder = cycles.datasets / dataset_id
    folder.mkdir(parents=True)
    erased = Erased(dataset_id, "default", "concierge", "thumbs", True, 0, {})
    (folder / "erased.json").write_text(json.dumps(asdict(erased)))


def test_nothing_is_published_of_a_dataset_that_was_erased_while_it_was_trained_on(
    cycles: Cycles, feedback: pa.Table
) -> None:
    def state(name: str) -> None:
        if name == "publishing":
            erase(cycles, "d-1")

    outcome = run(cycles, feedback, watch=replace(QUIET, on_state=state))
    assert (outcome.outcome, outcome.policy_id) == ("failed", "")
    assert "erased" in outcome.reason
    assert cycles.registry.ids() == ()


def test_a_candidate_is_held_against_the_base_where_what_serves_is_to_be_withdrawn(
    cycles: Cycles, feedback: pa.Table, tmp_path: Path
) -> None:
    run(cycles, feedback)
    cycles.rollouts.append(RolloutEntry(1, "default", "concierge", (("p-000001", 1.0),), "gate", "", 0))
    assert cycles.tainted() == {}
    erase(cycles, "d-1")
    assert list(cycles.tainted()) == ["p-000001"]
    again = dataset_of(tmp_path / "d", thumbs(150), cycles.base_model_hash).table()
    outcome = run(cycles, again, "d-2")
    assert outcome.outcome == "passed"
    assert cycles.registry.read("p-000002").training["serving_policy_id"] == "base"
