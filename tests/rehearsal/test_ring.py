import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest

from attune.rehearsal import collect
from attune.rehearsal.demo.prompts import user_prompts
from attune.rehearsal.journal import Journal
from attune.rehearsal.measure import measure
from attune.rehearsal.questions import heldout_errands, heldout_skills
from attune.rehearsal.ring import FREE_PORTS, OwnRing, RingError, own_ring
from attune.rehearsal.users import Crowd, Thumbs
from attune.rehearsal.watch import Watcher

DEMO = Path(__file__).parents[2] / "deploy" / "demo.toml"


def processes_that_name(text: str) -> list[int]:
    """Running processes with this text in their command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            said = " ".join([*process.cmdline(), *process.environ().values()])
            if text in said and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder; whatever still runs on it is ended and is a failure."""
    folder = tmp_path / "data"
    yield folder
    left = processes_that_name(str(folder))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


async def test_a_ring_that_cannot_start_says_why(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "bad.toml"
    config.write_text("[inference]\ngrpc_prot = 1\n")
    faults: list[str] = []
    with pytest.raises(RingError, match="grpc_prot"):
        async with own_ring(data, config, {}, end_seconds=10, faults=faults) as ring:
            await ring.ready(30, print)


@pytest.mark.timeout(600)
async def test_users_talk_and_vote_on_a_ring_that_leaves_nothing_behind(data: Path) -> None:
    faults: list[str] = []
    loop = asyncio.get_running_loop()
    began = loop.time()

    def now() -> float:
        return loop.time() - began

    journal = Journal("concierge", 1, 420, 400)
    async with own_ring(data, DEMO, FREE_PORTS, end_seconds=60, faults=faults) as own:
        ring = await own.ready(300, print)
        async with ring.chat.async_client() as client:
            errands, others = heldout_errands()[:3], heldout_skills()[-5:]
            measured = await measure(client, errands, others, lambda _answer, _done, _whole: None)
            crowd = Crowd(
                client,
                journal,
                now,
                student_persona="tutor",
                prompts=user_prompts(1),
                thumbs=Thumbs(random.Random(1), wrong_share=0.2, shuffled=False),
                seed=1,
                users=10,
                talkers=4,
                students=2,
            )
            stopping = asyncio.Event()
            watching = asyncio.create_task(Watcher(ring, journal, now, 0).run(stopping))
            talking = asyncio.create_task(crowd.run())
            async with asyncio.timeout(120):
                while len(journal.voted_at) < 10 or journal.ring.lake_rows < 10:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            crowd.stop()
            await talking
            stopping.set()
            await watching
            wanted = {answer.response_id for answer in measured.greedy if answer.item.persona == "tutor"}
            async with asyncio.timeout(60):
                while not wanted <= (await asyncio.to_thread(collect.output_tokens, data, "tutor")).keys():  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        pid = ring.inference_pid
        assert psutil.pid_exists(pid)
    assert faults == []
    assert not psutil.pid_exists(pid)
    assert len(measured.sampled) == 500
    assert measured.policies("concierge") == {"base"}
    assert (journal.open_streams, journal.broken_streams, journal.users_talking) == (0, 0, 0)
    assert {stream.persona for stream in journal.streams} == {"concierge", "tutor"}
    assert journal.tallies["base"].votes == len(journal.voted_at)
    assert [exchange.thumb_up is None for exchange in journal.exchanges if exchange.persona == "tutor"].count(
        False
    ) == 0


async def test_a_ring_that_ends_by_itself_is_noticed(data: Path) -> None:
    faults: list[str] = []
    async with own_ring(data, DEMO, FREE_PORTS, end_seconds=60, faults=faults) as own:
        await _until_services_run(own)
        os.kill(own.pid, signal.SIGKILL)
        with pytest.raises(RingError, match="ended with -9"):
            await own.ready(60, print)
    assert faults == ["`attune up` ended with -9"]


async def _until_services_run(own: OwnRing) -> None:
    async with asyncio.timeout(60):
        while len(psutil.Process(own.pid).children()) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_rehearsal_that_is_ended_takes_its_ring_with_it(data: Path, how: signal.Signals) -> None:
    plan = {
        "data": str(data), "config": str(DEMO), "address": "", "seed": 1, "seconds": 420.0, "shuffle_thumbs": False,
        "plain": True, "report": "",
    }  # fmt: skip
    rehearsal = subprocess.Popen(
        [sys.executable, "-m", "attune.rehearsal.rehearse", json.dumps(plan)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        own = psutil.Process(rehearsal.pid)
        while len(running := own.children(recursive=True)) < 5:  # `attune up` and its services
            assert rehearsal.poll() is None
        rehearsal.send_signal(how)
        said, _ = rehearsal.communicate(timeout=90)
        _, alive = psutil.wait_procs(running, timeout=20)
    finally:
        rehearsal.kill()
    assert alive == []
    assert rehearsal.returncode == (130 if how != signal.SIGKILL else -signal.SIGKILL)
    assert ("interrupted; the ring was ended" in said) == (how != signal.SIGKILL)


def test_a_plan_for_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    config = tmp_path / "other.toml"
    config.write_text('model = "somewhere"\n')
    plan = {
        "data": str(data), "config": str(config), "address": "", "seed": 1, "seconds": 420.0, "shuffle_thumbs": False,
        "plain": True, "report": "",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "attune.rehearsal.rehearse", json.dumps(plan)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "know the demo model only" in done.stdout


def test_prompts_of_users_differ_by_seed_alone() -> None:
    assert list(islice(user_prompts(1), 50)) == list(islice(user_prompts(1), 50))
    assert list(islice(user_prompts(1), 50)) != list(islice(user_prompts(2), 50))
