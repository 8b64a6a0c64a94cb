"""One cycle: a dataset becomes a policy with a verdict, or a reason why not.

Kill it anywhere and nothing is half-published: a policy is there when its manifest is, it may serve when its verdict
passed, and a restarted trainer either starts the cycle again or finishes writing down how it ended.
"""

import contextlib
import fcntl
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow

from attune.chat.template import ChatTemplate
from attune.errors import AttuneError, FailedPrecondition, NotFound
from attune.ids import BASE_POLICY
from attune.keys import PolicySigner
from attune.lake.erased import erased_by_request
from attune.personas.persona import Persona
from attune.registry.lineage import Lineage
from attune.registry.policies import PolicyManifest, Registry
from attune.registry.rollouts import RolloutLog
from attune.registry.verdict import Verdict
from attune.trainer.candidate import SERVING, Watch, make_candidate
from attune.trainer.evaluate import RegressionPrompt, SkillItem, items_sha256
from attune.trainer.examples import Example, least_label_share, read_examples, sample_replay
from attune.trainer.gate import Limits, Metrics, check_data, judge
from attune.trainer.kto import KtoArguments, TrainingStopped
from attune.trainer.outcomes import Ending, Outcome, Outcomes
from attune.trainer.tracking import track_dataset, track_figures, tracked_run
from attune.trainer.trigger import approval, enough_learned
from attune.v1 import event_pb2

logger = logging.getLogger(__name__)

_MOST_STARTS = 5
_LEARNER = "kto"


@dataclass(frozen=True)
class Cycles:
    """All that cycles of one installation share."""

    folder: Path
    datasets: Path
    base_folder: Path
    base_model_hash: str
    template: ChatTemplate
    registry: Registry
    rollouts: RolloutLog
    signer: PolicySigner
    regression: Sequence[RegressionPrompt]
    replay: Sequence[RegressionPrompt]
    replay_share: float
    arguments: KtoArguments
    limits: Limits
    enough_approval: float
    dtype: str
    seed: int
    now_unix_ms: Callable[[], int]

    def tainted(self) -> dict[str, PolicyManifest]:
        """Policies that learned from somebody who was erased since, by id."""
        return Lineage(self.registry).made_with(erased_by_request(self.datasets))

    @property
    def outcomes(self) -> Outcomes:
        return Outcomes(self.folder / "cycles")

    @contextlib.contextmanager
    def lease(self, persona: Persona) -> Iterator[bool]:
        """Whether this process may run this persona's cycles; held until the block ends, or the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{persona.tenant}.{persona.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def run(self, persona: Persona, dataset_id: str, read: Callable[[], pyarrow.Table], watch: Watch) -> Outcome:
        """Runs the dataset's cycle to its end and records it; under the persona's lease.

        Raises TrainingStopped, with nothing left behind, when the process was told to stop. What is wrong with the
        data or the serving policy ends the cycle as failed; what is wrong with the machine is raised.
        """
        started = time.monotonic()
        work = self.folder / "work" / f"{persona.tenant}.{persona.name}" / dataset_id
        _remove_others(work)

        def ended(outcome: Ending, reason: str, policy_id: str = "") -> Outcome:
            return Outcome(
                dataset_id,
                persona.tenant,
                persona.name,
                outcome,
                policy_id,
                reason,
                round(time.monotonic() - started, 3),
                self.now_unix_ms(),
            )

        try:
            published = self._published(persona, dataset_id)
            if published is None and _count_start(work) > _MOST_STARTS:
                outcome = ended("failed", f"started {_MOST_STARTS} times and never came to its end")
            else:
                verdict, reason = self._verdict(persona, dataset_id, read, published, work=work, watch=watch)
                if verdict is None:
                    outcome = ended("skipped", reason)
                else:
                    outcome = ended("passed" if verdict.passed else "refused", reason, verdict.policy_id)
        except TrainingStopped:
            shutil.rmtree(work, ignore_errors=True)
            raise
        except AttuneError as error:
            logger.warning("cycle failed", extra={"dataset_id": dataset_id, "reason": error.message})
            outcome = ended("failed", error.message)
        self.outcomes.record(outcome)
        shutil.rmtree(work, ignore_errors=True)
        return outcome

    def _verdict(
        self,
        persona: Persona,
        dataset_id: str,
        read: Callable[[], pyarrow.Table],
        published: PolicyManifest | None,
        *,
        work: Path,
        watch: Watch,
    ) -> tuple[Verdict | None, str]:
        """The candidate's verdict, or None and why there is no candidate."""
        if published is None:
            table = read()
            train = read_examples(table, "train", self.base_model_hash)
            heldout = read_examples(table, "heldout", self.base_model_hash)
            serving = self._serving(persona)
            reason = self._reason_to_skip(train, heldout, serving)
            if reason:
                return None, reason
            published = self._publish(
                persona, dataset_id, serving, train=train, heldout=heldout, work=work, watch=watch
            )
        try:
            verdict = self.registry.read_verdict(published.policy_id)
        except NotFound:
            metrics = Metrics.from_flat(published.metrics)
            verdict = judge(published.policy_id, metrics, self.limits, self.now_unix_ms())
            self.registry.write_verdict(verdict, self.signer)
        failed = [check.reason for check in verdict.checks if not check.passed]
        return verdict, "; ".join(failed) or "every check passed"

    def _reason_to_skip(self, train: Sequence[Example], heldout: Sequence[Example], serving: str) -> str:
        checks = check_data(len(train), least_label_share(train), len(heldout), self.limits)
        missing = [check.reason for check in checks if not check.passed]
        if missing:
            return "; ".join(missing)
        thumbs = approval([*train, *heldout], serving)
        if enough_learned(thumbs, self.enough_approval):
            return (
                f"little is left to learn: {thumbs.share:.1%} of {thumbs.thumbs} thumbs on {serving} are up, "
                f"surely more than {thumbs.lower:.1%}; training stops above {self.enough_approval:.1%}"
            )
        return ""

    def _publish(
        self,
        persona: Persona,
        dataset_id: str,
        serving: str,
        *,
        train: Sequence[Example],
        heldout: Sequence[Example],
        work: Path,
        watch: Watch,
    ) -> PolicyManifest:
        name = f"{persona.tenant}/{persona.name}/{dataset_id}"
        items = self._skill_items(persona)
        items_hash = items_sha256(items)
        serving_folder = self._copy_of(serving, work)
        with tracked_run(name, {"persona": persona.name, "tenant": persona.tenant, "dataset_id": dataset_id}):
            track_dataset(f"{persona.tenant}/{persona.name}", dataset_id, self.datasets / dataset_id)
            candidate = make_candidate(
                self.base_folder,
                serving_folder,
                train,
                heldout,
                replay=sample_replay(self._replay_examples(persona), len(train), self.replay_share, self.seed),
                items=items,
                known_skills={} if serving_folder is None else self._known_skills(serving, items_hash),
                arguments=self.arguments,
                dtype=self.dtype,
                seed=self.seed,
                work=work,
                track=True,
                watch=watch,
            )
            watch.enter("publishing")
            if dataset_id in erased_by_request(self.datasets):
                raise FailedPrecondition("somebody in the dataset was erased while it was trained on")
            flat = candidate.metrics.to_flat()
            track_figures(flat)
        return self.registry.publish(
            PolicyManifest(
                policy_id=self.registry.claim(persona.tenant, persona.name),
                tenant=persona.tenant,
                persona=persona.name,
                base_model_hash=self.base_model_hash,
                parent_policy_id="",
                dataset_ids=(dataset_id,),
                created_unix_ms=self.now_unix_ms(),
                training={
                    "learner": _LEARNER,
                    "seed": self.seed,
                    "dtype": self.dtype,
                    "serving_policy_id": serving,
                    "regression_sha256": items_hash,
                    "replay_sha256": items_sha256(self._items(persona, self.replay)),
                    "replay_share": self.replay_share,
                    **asdict(self.arguments),
                },
                metrics=flat,
                probe=candidate.probe,
            ),
            candidate.adapter_folder,
            self.signer,
        )

    def _published(self, persona: Persona, dataset_id: str) -> PolicyManifest | None:
        """The policy that an earlier run of this cycle published before it was killed."""
        made = self.registry.list(persona.tenant, persona.name)
        return next((manifest for manifest in made if manifest.dataset_ids == (dataset_id,)), None)

    def _serving(self, persona: Persona) -> str:
        """What a candidate has to be better than: the base where what serves is to be withdrawn anyhow."""
        entry = self.rollouts.current(persona.tenant, persona.name)
        if entry is None or entry.main_policy_id in self.tainted():
            return BASE_POLICY
        return entry.main_policy_id

    def _copy_of(self, policy_id: str, work: Path) -> Path | None:
        """The serving policy's verified adapter; None for the base, and for a policy of another base model."""
        if policy_id == BASE_POLICY:
            return None
        manifest = self.registry.check(policy_id)
        if manifest.base_model_hash != self.base_model_hash:
            return None
        folder = work / "serving"
        shutil.rmtree(folder, ignore_errors=True)
        self.registry.copy_out(manifest, folder)
        return folder

    def _known_skills(self, serving: str, items_hash: str) -> dict[str, dict[str, float]]:
        """What was measured when the serving policy was the candidate, if it was asked the same."""
        manifest = self.registry.read(serving)
        if manifest.training.get("regression_sha256") != items_hash:
            return {}
        metrics = Metrics.from_flat(manifest.metrics)
        return {BASE_POLICY: metrics.skill_shares("base"), SERVING: metrics.skill_shares("candidate")}

    def _skill_items(self, persona: Persona) -> list[SkillItem]:
        return self._items(persona, self.regression)

    def _replay_examples(self, persona: Persona) -> list[Example]:
        return [
            Example(list(item.prompt_token_ids), self.template.answer(item.answer), True, "", BASE_POLICY, 0)
            for item in self._items(persona, self.replay)
        ]

    def _items(self, persona: Persona, prompts: Sequence[RegressionPrompt]) -> list[SkillItem]:
        """This persona's prompts: other personas have policies of their own."""
        return [
            SkillItem(
                prompt.skill,
                self.template.render(persona.system_prompt, prompt.messages, _offered(persona, prompt)),
                prompt.answer,
            )
            for prompt in prompts
            if prompt.persona in ("", persona.name)
        ]


def _offered(persona: Persona, prompt: RegressionPrompt) -> list[event_pb2.Tool]:
    """The persona's tools and the prompt's; of two with one name the persona's."""
    own = {tool.name for tool in persona.offered_tools}
    return [*persona.offered_tools, *(tool for tool in prompt.tools if tool.name not in own)]


def _count_start(work: Path) -> int:
    """How often this cycle was begun, this time included; a stop in order and an end forget it."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "starts").open("ab") as starts:
        starts.write(b".")
        return starts.tell()


def _remove_others(work: Path) -> None:
    """What killed cycles of this persona left behind."""
    if work.parent.is_dir():
        for folder in work.parent.iterdir():
            if folder != work:
                shutil.rmtree(folder, ignore_errors=True)
