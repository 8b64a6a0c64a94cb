"""The trainer's process: `python -m attune.trainer.main --config FILE`."""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune import metrics
from attune.clock import now_unix_ms
from attune.errors import AttuneError
from attune.ids import persona_label
from attune.keys import PolicySigner, PolicyVerifier
from attune.logs import configure_logging
from attune.metrics_page import serve_metrics
from attune.personas import Persona, Personas
from attune.registry.withdrawal import withdraw_idle
from attune.runtime import announced, die_with_parent, stop_on_signals
from attune.settings import Settings, load_settings
from attune.tls import page_context, server_tls
from attune.trainer.tracking import open_tracking, stay_at_home

if TYPE_CHECKING:
    from attune.trainer.candidate import Watch
    from attune.trainer.cycle import Cycles
    from attune.trainer.outcomes import Outcome
    from attune.trainer.prompts import PromptFiles

logger = logging.getLogger("attune.trainer")

_STATES = ("idle", "training", "evaluating", "publishing")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m attune.trainer.main", description=__doc__)
    parser.add_argument("--config", type=Path)
    arguments = parser.parse_args()
    die_with_parent()
    try:
        run(load_settings(arguments.config))
    except AttuneError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


def run(settings: Settings) -> None:
    """Until SIGTERM or SIGINT."""
    configure_logging("trainer", settings.log_level)
    stopping = stop_on_signals()
    os.nice(settings.trainer.nice)
    port, _, _ = serve_metrics(
        settings.trainer.host, settings.trainer.metrics_port, page_context(server_tls(settings.tls))
    )
    _show_state("idle")
    workshop = prepare(settings)
    with announced(settings.data, "trainer", metrics=port):
        serve(settings, workshop, stopping)


def serve(settings: Settings, workshop: "Workshop", stopping: threading.Event) -> None:
    """Runs a cycle whenever a persona has a new dataset, until told to stop."""
    watch = _watch(stopping.is_set)
    while not stopping.is_set():
        for persona in workshop.personas:
            if not stopping.is_set():
                _run_if_due(settings, workshop, persona, watch)
        _withdraw(workshop.cycles)
        stopping.wait(settings.trainer.poll_seconds)


def run_once(settings: Settings) -> list["Outcome"]:
    """One cycle for each persona that has a new dataset, now; returns how they ended."""
    workshop = prepare(settings)
    watch = _watch(lambda: False)
    ended = [_run_if_due(settings, workshop, persona, watch) for persona in workshop.personas]
    return [outcome for outcome in ended if outcome is not None]


def _withdraw(cycles: "Cycles") -> None:
    """Policies that learned from somebody who was erased."""
    try:
        withdraw_idle(cycles.registry, cycles.rollouts, cycles.tainted())
    except AttuneError as error:
        logger.error("policies cannot be looked through", extra={"reason": error.message})


@dataclass(frozen=True)
class Workshop:
    """All that cycles are run with; personas and prompts may change between two of them."""

    cycles: "Cycles"
    personas: Personas
    regression: "PromptFiles"
    replay: "PromptFiles"

    def now(self) -> "Cycles":
        """Cycles with the prompts as they are now."""
        return replace(self.cycles, regression=self.regression.prompts(), replay=self.replay.prompts())


def prepare(settings: Settings) -> Workshop:
    """Imports the libraries, connects to MLflow and warms up, so that the first cycle starts at once."""
    stay_at_home()
    threads = settings.trainer.threads or max(1, (os.cpu_count() or 2) // 2)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads must not take the engine's cores
    import torch
    import transformers

    from attune.chat.model import model_hash
    from attune.chat.template import ChatTemplate
    from attune.registry.policies import Registry
    from attune.registry.rollouts import RolloutLog
    from attune.trainer.cycle import Cycles
    from attune.trainer.gate import Limits
    from attune.trainer.kto import KtoArguments
    from attune.trainer.prompts import PromptFiles

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    trainer, gate = settings.trainer, settings.trainer.gate
    settings.data.mkdir(parents=True, exist_ok=True)
    open_tracking(settings.mlflow_uri)
    personas = Personas.open(settings.data, settings.personas_folder, settings.default_persona)
    keys, registry = settings.data / "keys", settings.data / "registry"

    def prompts_of(shipped: str, own: Path | None) -> PromptFiles:
        """The demo model's own prompts and the operator's, where there are any."""
        files = [settings.model_folder.parent / shipped] if settings.model == "demo" else []
        return PromptFiles([*files, *([] if own is None else [own])], personas)

    regression = prompts_of("regression.jsonl", gate.prompts)
    replay = prompts_of("replay.jsonl", trainer.replay)

    cycles = Cycles(
        folder=settings.data / "trainer",
        datasets=settings.data / "datasets",
        base_folder=settings.model_folder,
        base_model_hash=model_hash(settings.model_folder),
        template=ChatTemplate.load(settings.model_folder),
        registry=Registry(registry, PolicyVerifier.load_or_create(keys)),
        rollouts=RolloutLog(registry),
        signer=PolicySigner.load_or_create(keys),
        regression=regression.prompts(),
        replay=replay.prompts(),
        replay_share=trainer.replay_share,
        arguments=KtoArguments(**trainer.kto.model_dump()),
        limits=Limits(**gate.model_dump(exclude={"enough_approval", "prompts"})),
        enough_approval=gate.enough_approval,
        dtype=trainer.dtype,
        seed=trainer.seed,
        now_unix_ms=now_unix_ms,
    )
    logger.info("trainer ready", extra={"threads": threads, "regression_prompts": len(cycles.regression)})
    return Workshop(cycles, personas, regression, replay)


def _run_if_due(settings: Settings, workshop: Workshop, persona: Persona, watch: "Watch") -> "Outcome | None":
    """The persona's cycle, if there is a new dataset and nobody else is at it."""
    from attune.lake.dataset import list_datasets
    from attune.trainer.kto import TrainingStopped
    from attune.trainer.trigger import next_dataset

    datasets = {
        dataset.manifest.dataset_id: dataset
        for dataset in list_datasets(settings.data / "datasets", persona.tenant, persona.name, "thumbs")
    }
    dataset_id = next_dataset(list(datasets), workshop.cycles.outcomes.dataset_ids())
    if dataset_id is None:
        return None
    cycles = workshop.now()
    with cycles.lease(persona) as leased:
        if not leased or cycles.outcomes.read(dataset_id) is not None:
            return None
        logger.info("cycle begins", extra={"persona": persona.name, "dataset_id": dataset_id})
        try:
            outcome = cycles.run(persona, dataset_id, datasets[dataset_id].table, watch)
        except TrainingStopped:
            logger.info("cycle stopped", extra={"persona": persona.name, "dataset_id": dataset_id})
            return None
        finally:
            _show_state("idle")
    _show_outcome(outcome)
    return outcome


def _watch(stopping: Callable[[], bool]) -> "Watch":
    from attune.trainer.candidate import Watch

    return Watch(_show_state, _show_step, stopping)


def _show_state(state: str) -> None:
    for each in _STATES:
        metrics.TRAINING_STATE.labels(each).set(each == state)


def _show_step(done: int, steps: int) -> None:
    metrics.TRAINING_STEP.set(done)
    metrics.TRAINING_STEPS.set(steps)


def _show_outcome(outcome: "Outcome") -> None:
    label = persona_label(outcome.tenant, outcome.persona)
    metrics.TRAINING_CYCLES.labels(label, outcome.outcome).inc()
    metrics.TRAINING_SECONDS.labels(label).set(outcome.seconds)
    if outcome.policy_id:
        metrics.VERDICT_PASSED.labels(label).set(outcome.outcome == "passed")
    fields: dict[str, Any] = {name: value for name, value in vars(outcome).items() if name != "created_unix_ms"}
    logger.info("cycle ended", extra=fields)


if __name__ == "__main__":
    sys.exit(main())
