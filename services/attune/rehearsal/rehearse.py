"""A rehearsal: a ring, users who vote, and a look at what came of it. `python -m attune.rehearsal.rehearse PLAN`.

PLAN is a `Plan` as JSON; `attune rehearse` makes it from its options.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from attune.client import AsyncClient, Retry
from attune.errors import AttuneError, FailedPrecondition, InvalidInput
from attune.personas import load_personas
from attune.registry.policies import PolicyManifest
from attune.rehearsal import collect, report
from attune.rehearsal.demo.dialogues import CONCIERGE, TUTOR
from attune.rehearsal.demo.prompts import user_prompts
from attune.rehearsal.enough import on_the_way, still_missing
from attune.rehearsal.exact import apart, claim_probabilities
from attune.rehearsal.expectations import all_met, judge
from attune.rehearsal.figures import ClaimProbability, Figures, TutorFigures, VerdictFigures
from attune.rehearsal.journal import Journal
from attune.rehearsal.measure import (
    Answer,
    Measurement,
    before_and_after,
    claims,
    compare_tokens,
    exchange_of,
    measure,
    of_persona,
    skills,
)
from attune.rehearsal.questions import heldout_errands, heldout_skills
from attune.rehearsal.ring import FREE_PORTS, OwnRing, Ring, own_ring, running_ring
from attune.rehearsal.users import Crowd, Thumbs
from attune.rehearsal.view import shown
from attune.rehearsal.watch import Watcher, list_policies, verdict_figures
from attune.settings import Settings, load_settings

USERS = 60
TALKERS = 8
STUDENTS = 4
WRONG_THUMBS = 0.2

# Users stop voting this long before the time is up: what comes after takes about as much.
_AFTER_SECONDS = 60.0
_START_SECONDS = 180.0
_TICK_SECONDS = 0.25
# So many times as long as planned, at most, while what is needed is still on its way.
_LONGER = 2
_LAKE_SECONDS = 30.0
_ANSWERS_SHOWN = 8
_EXACT_THREADS = 2  # more only wait for each other on so small a model
_MEASURED_AGAIN = 2
_NO_REPEATS = Retry(attempts=1)  # what is refused or breaks is to be seen


@dataclass(frozen=True)
class Plan:
    """What was asked for. `address` is of a ring that runs already on the folder `data`; empty to start one."""

    data: str
    config: str
    address: str
    seed: int
    seconds: float
    shuffle_thumbs: bool
    plain: bool
    report: str

    def data_folder(self) -> Path:
        """The folder that was named, or one named by the time of this call."""
        return Path(self.data or time.strftime("rehearsal-%Y%m%d-%H%M%S")).absolute()

    def report_folder(self, data: Path) -> Path:
        return Path(self.report).absolute() if self.report else data / "report"

    def config_file(self) -> Path | None:
        return Path(self.config).absolute() if self.config else None


class Rehearsal:
    """One rehearsal from beginning to end."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        self._plan = plan
        self._settings = settings
        self._data = settings.data
        self._started_unix_seconds = time.time()
        began = time.monotonic()
        self.now: Callable[[], float] = lambda: time.monotonic() - began
        self.journal = Journal(
            voters=CONCIERGE,
            seed=plan.seed,
            budget_seconds=plan.seconds,
            build_feedback=settings.aggregator.build_feedback,
        )
        self._faults: list[str] = []
        self._stages: list[tuple[str, float]] = []
        self._errands = heldout_errands()
        self._others = heldout_skills()

    async def run(self) -> Figures:
        """Raises an AttuneError when the ring does not start or ends by itself; a started ring is ended in any case."""
        async with (
            self._ring() as (ring, own),
            ring.chat.async_client(retry=_NO_REPEATS) as client,
            self._watched(ring),
        ):
            pid_before = ring.inference_pid
            self._enter("the base model is measured", "answers to held-out questions")
            before = await self._measure(client)
            self._enter("users talk and vote", "votes for the first dataset")
            await self._talk(own, client)
            self._enter("the last policy is measured", "answers to the same questions")
            after = await self._measure(client)
            tutor = await self._compare_tutor(before, after)
            verdicts = await self._verdicts(ring)
            pid_after = ring.inference_pid
            self._enter("the ring is ended" if own else "the ring goes on")
        policies = collect.published(self._data, CONCIERGE)
        self._enter("false claims are computed exactly", f"{len(policies) + 1} policies on all held-out errands")
        exact = await self._exact(policies)
        self._enter("the report is written")
        datasets = collect.datasets_of(self._data, CONCIERGE)
        last = self._only_policy(after)
        sampled = {last: claims(after.sampled), self._only_policy(before): claims(before.sampled)}
        journal = self.journal
        return Figures(
            seed=self._plan.seed,
            shuffled=self._plan.shuffle_thumbs,
            wrong_thumbs_share=WRONG_THUMBS,
            users=USERS,
            started_unix_seconds=self._started_unix_seconds,
            stage_seconds=self._stage_seconds(),
            policies=collect.policy_figures(journal, policies, exact, sampled),
            last_policy_id=last,
            swaps=collect.swap_figures(journal, datasets, policies),
            skills=skills(before, after),
            tutor=tutor,
            answers=before_and_after(before, after, _ANSWERS_SHOWN),
            verdicts=verdicts,
            datasets=collect.dataset_figures(datasets, policies),
            cycles_skipped=journal.ring.cycles.get("skipped", 0),
            votes=len(journal.voted_at),
            streams=len(journal.streams),
            streams_broken=journal.broken_streams,
            calls_refused=journal.refused_calls,
            inference_pids=(pid_before, pid_after),
            errands=journal.errands(),
            trainings=journal.all_trainings(),
            stopped="; ".join(self._faults),
            surroundings=collect.surroundings(),
        )

    def _enter(self, stage: str, waiting_for: str = "") -> None:
        self._stages.append((stage, self.now()))
        self.journal.enter(self.now(), stage, waiting_for)

    def _stage_seconds(self) -> dict[str, float]:
        ends = [at for _, at in self._stages[1:]] + [self.now()]
        return {stage: end - at for (stage, at), end in zip(self._stages, ends, strict=True)}

    @contextlib.asynccontextmanager
    async def _ring(self) -> AsyncIterator[tuple[Ring, OwnRing | None]]:
        """The ring that runs already, or one of our own on free ports; a rehearsal begins with the base model."""
        if self._plan.address:
            self._enter("the running ring is looked at")
            ring = running_ring(self._settings, self._plan.address)
            if collect.published(self._data, CONCIERGE):
                raise FailedPrecondition(
                    f"{CONCIERGE} has policies already in {self._data}; a rehearsal begins with the base model"
                )
            yield ring, None
            return
        self._enter("the ring starts", "the engine, which takes 15 to 35 s")
        config = self._plan.config_file()
        end_seconds = 2 * self._settings.supervisor.stop_seconds
        async with own_ring(self._data, config, FREE_PORTS, end_seconds=end_seconds, faults=self._faults) as own:
            yield await own.ready(_START_SECONDS, lambda text: self.journal.tell(self.now(), text)), own

    async def _measure(self, client: AsyncClient) -> Measurement:
        """Measures the persona that is voted on, again if a policy was swapped in meanwhile."""

        def told(answer: Answer, done: int, whole: int) -> None:
            self.journal.progress = (done, whole)
            self.journal.latest.append(exchange_of(answer, self.now()))

        for _ in range(_MEASURED_AGAIN):
            measured = await measure(client, self._errands, self._others, told)
            if len(measured.policies(CONCIERGE)) == 1:
                return measured
            self.journal.tell(self.now(), "a policy was swapped in meanwhile; measuring it instead")
        return await measure(client, self._errands, self._others, told)

    def _only_policy(self, measured: Measurement) -> str:
        policies = sorted(measured.policies(CONCIERGE))
        if len(policies) > 1:
            self._faults.append(f"policies changed while they were measured: {', '.join(policies)}")
        return policies[-1]

    @contextlib.asynccontextmanager
    async def _watched(self, ring: Ring) -> AsyncIterator[None]:
        """Keeps the journal up to date with the ring."""
        stopping = asyncio.Event()
        watcher = Watcher(ring, self.journal, self.now, self._started_unix_seconds)
        watching = asyncio.create_task(watcher.run(stopping), name="watcher")
        try:
            yield
        finally:
            stopping.set()
            await watching
            self.journal.leave_ring()

    async def _talk(self, own: OwnRing | None, client: AsyncClient) -> None:
        """Lets users talk and vote until enough has been learned, or the time is up."""
        seed = self._plan.seed
        crowd = Crowd(
            client,
            self.journal,
            self.now,
            student_persona=TUTOR,
            prompts=user_prompts(seed),
            thumbs=Thumbs(
                random.Random(f"thumbs/{seed}"), wrong_share=WRONG_THUMBS, shuffled=self._plan.shuffle_thumbs
            ),
            seed=seed,
            users=USERS,
            talkers=TALKERS,
            students=STUDENTS,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.run())
            try:
                while self._has_time():
                    if own is not None:
                        own.check()
                    missing = still_missing(self.journal, shuffled=self._plan.shuffle_thumbs)
                    if not missing:
                        break
                    self.journal.waiting_for = missing
                    await asyncio.sleep(_TICK_SECONDS)
                else:
                    self.journal.tell(self.now(), f"the time is up while waiting for {self.journal.waiting_for}")
            finally:
                crowd.stop()

    def _has_time(self) -> bool:
        """Until users are to stop: later where the machine is slow and the policies are still on their way."""
        if self.now() < self.journal.budget_seconds - _AFTER_SECONDS:
            return True
        if self.journal.budget_seconds > self._plan.seconds or not on_the_way(
            self.journal, shuffled=self._plan.shuffle_thumbs
        ):
            return False
        self.journal.budget_seconds = self._plan.seconds * _LONGER
        self.journal.tell(
            self.now(),
            f"a slow machine: {self.journal.waiting_for} is still on its way, and gets up to "
            f"{self.journal.budget_seconds - self._plan.seconds:.0f} s more",
        )
        return True

    async def _compare_tutor(self, before: Measurement, after: Measurement) -> TutorFigures:
        """Compares the other persona's tokens, once the lake holds them."""
        first, second = of_persona(before, TUTOR), of_persona(after, TUTOR)
        wanted = {answer.response_id for answer in (*first, *second)}
        self.journal.waiting_for = "the lake to hold the answers"
        deadline = self.now() + _LAKE_SECONDS
        while True:
            tokens = await asyncio.to_thread(collect.output_tokens, self._data, TUTOR)
            if wanted <= tokens.keys() or self.now() > deadline:
                return compare_tokens(first, second, tokens)
            await asyncio.sleep(_TICK_SECONDS)

    async def _verdicts(self, ring: Ring) -> tuple[VerdictFigures, ...]:
        listed = await list_policies(ring, CONCIERGE)
        return tuple(verdict_figures(policy) for policy in listed if policy.HasField("verdict"))

    async def _exact(self, policies: Sequence[PolicyManifest]) -> dict[str, ClaimProbability]:
        prompts = [item.messages for item in self._errands]
        system_prompt = load_personas(self._settings.personas_folder)[CONCIERGE].system_prompt
        threads = min(_EXACT_THREADS, len(os.sched_getaffinity(0)))
        with (
            tempfile.TemporaryDirectory(prefix="attune-rehearsal-") as folder,
            apart(threads, self._data / "logs" / "exact.log") as process,
        ):
            adapters = collect.copy_adapters(self._data, policies, Path(folder))
            work = process.submit(claim_probabilities, self._settings.model_folder, system_prompt, prompts, adapters)
            return await asyncio.wrap_future(work)


def read_settings(plan: Plan, data: Path) -> Settings:
    """The ring's settings; raises InvalidInput for a model or personas that the synthetic users do not know."""
    settings = load_settings(plan.config_file(), {**os.environ, "ATTUNE_DATA": str(data)})
    if settings.model != "demo" or settings.personas != "demo":
        raise InvalidInput("the rehearsal's users know the demo model only: set model and personas to demo")
    if plan.seconds <= _AFTER_SECONDS:
        raise InvalidInput(f"--seconds is {plan.seconds:g}; it must be above {_AFTER_SECONDS:g}")
    return settings


async def rehearse(plan: Plan, console: Console) -> bool:
    """Runs the plan, writes and prints the report; whether everything that was expected came."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _cancel(asyncio.current_task()))
    data = plan.data_folder()
    rehearsal = Rehearsal(plan, read_settings(plan, data))
    plain = plan.plain or not console.is_terminal
    if plain:
        console.print(f"attune rehearsal: seed {plan.seed}, data {data}", markup=False, highlight=False, soft_wrap=True)
    async with shown(rehearsal.journal, rehearsal.now, console, plain=plain):
        figures = await rehearsal.run()
    expectations = judge(figures)
    page = report.write(plan.report_folder(data), figures, expectations)
    console.print(report.as_text(figures, expectations), markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nThe report: {page}", markup=False, highlight=False, soft_wrap=True)
    return all_met(expectations)


def _cancel(task: "asyncio.Task[object] | None") -> Callable[[], None]:
    def cancel() -> None:
        if task is not None:
            task.cancel()

    return cancel


def main() -> int:
    plan = Plan(**json.loads(sys.argv[1]))
    console = Console()
    try:
        return 0 if asyncio.run(rehearse(plan, console)) else 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; the ring was ended" if not plan.address else "interrupted", highlight=False)
        return 130
    except (AttuneError, ExceptionGroup) as error:
        known = _known(error)
        if known is None:
            raise
        console.print(f"attune: {known.message}", markup=False, highlight=False, soft_wrap=True)
        return 1


def _known(error: Exception) -> AttuneError | None:
    """The error itself, or the first of those that tasks met together; None when there is another kind among them."""
    if isinstance(error, ExceptionGroup):
        known = [_known(part) for part in error.exceptions]
        return known[0] if None not in known else None
    return error if isinstance(error, AttuneError) else None


if __name__ == "__main__":
    sys.exit(main())
