"""`python -m attune.rehearsal.soak --seeds 200`: runs schedules, each written into a ledger; goes on where it was.

    --seeds N          the seeds 1 to N; those that the ledger has are not run again
    --seed S           this one alone, whatever the ledger has; its folder is kept
    --ledger FILE      JSON lines: seed, what the schedule was, how many faults struck, and what was wrong

With Java (and Maven once) half of the schedules go through a real Kafka broker, one after another, and the others run
beside them; as root on Linux some fill the disk.
Exits 0 when nothing was lost, doubled, invented or changed in any run of the ledger.
"""

# ruff: noqa: T201 - it talks to the terminal

import argparse
import json
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from rich.progress import Progress

from attune.errors import FailedPrecondition
from attune.eventlog.broker import fetch_jars, free_port
from attune.rehearsal.soak import stage
from attune.rehearsal.soak.schedule import Schedule, draw


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = arguments.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", type=int)
    which.add_argument("--seed", type=int)
    arguments.add_argument("--ledger", type=Path, default=Path("soak.jsonl"))
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory(prefix="attune-soak-") as name:
        folder = Path(name)
        disk = stage.can_fill_a_disk(folder)
        broker = _broker(folder)
        print(f"Kafka: {'yes' if broker else 'no'}; full disks: {'yes' if disk else 'no'}")
        try:
            if options.seed is not None:
                kept = Path(tempfile.mkdtemp(prefix=f"attune-soak-{options.seed}-"))
                schedule = draw(options.seed, kafka=broker is not None, disk=disk)
                return 1 if _run(schedule, kept, broker, disk, options.ledger) else 0
            done = _read(options.ledger)
            todo = [seed for seed in range(1, options.seeds + 1) if seed not in done]
            with Progress(transient=True) as progress:
                task = progress.add_task("schedules", total=len(todo))

                def run(schedule: Schedule) -> None:
                    seed = schedule.seed
                    done[seed] = _run(schedule, folder / f"run-{seed}", broker, disk, options.ledger)
                    progress.advance(task)

                stage.run_each([draw(seed, kafka=broker is not None, disk=disk) for seed in todo], run)
        finally:
            if broker is not None:
                broker.kill()
    failed = sorted(seed for seed, wrong in done.items() if wrong)
    print(f"{len(done)} schedules, {len(failed)} failed{': ' if failed else ''}{', '.join(map(str, failed))}")
    return 1 if failed else 0


def _broker(folder: Path) -> stage.Broker | None:
    try:
        return stage.Broker(folder / "broker", free_port(), fetch_jars())
    except FailedPrecondition as missing:
        print(f"without Kafka: {missing.message}")
        return None


def _run(schedule: Schedule, folder: Path, broker: stage.Broker | None, disk: bool, ledger: Path) -> bool:
    """Whether something was wrong. The folder of a run that went well is removed."""
    outcome = stage.run(schedule, folder, broker, disk=disk)
    line = {
        "seed": schedule.seed,
        "kafka": schedule.kafka,
        "rival": schedule.rival,
        "faults": [str(fault) for fault in schedule.faults],
        "struck": outcome.struck,
        "acknowledged": outcome.acknowledged,
        "seconds": round(outcome.seconds, 2),
        "wrong": outcome.wrong,
    }
    with ledger.open("a") as file:
        file.write(json.dumps(line) + "\n")
    if outcome.wrong:
        print(f"seed {schedule.seed}: {'; '.join(outcome.wrong)}\n  {line['faults']}\n  what is left: {folder}")
    else:
        with suppress(OSError):
            shutil.rmtree(folder)
    return bool(outcome.wrong)


def _read(ledger: Path) -> dict[int, bool]:
    if not ledger.exists():
        return {}
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    return {line["seed"]: bool(line["wrong"]) for line in lines}


if __name__ == "__main__":
    sys.exit(main())
