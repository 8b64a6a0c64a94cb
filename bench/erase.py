"""Erasing one person from a ring of many conversations: how long each step takes, and that nothing else goes.

    python bench/erase.py --conversations 10000

In process, with the stores of one machine: event log, lake, dataset, receipts, answers under request ids, a policy.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.aggregator.forgotten import JANE, TOKENS, WORDS, Ring
from tests.aggregator.trace import traces

from attune.erasures import CERTIFICATE


async def measure(folder: Path, conversations: int) -> dict[str, object]:
    steps: dict[str, float] = {}
    last = [0.0]

    def reached(step: str) -> None:
        now = time.monotonic()
        steps[step] = round(steps.get(step, 0.0) + now - last[0], 2)
        last[0] = now

    ring = Ring(folder, reached, batch_records=2000)
    begun = time.monotonic()
    await ring.fill(people=conversations)
    filled = time.monotonic() - begun
    before = {topic: len(ids) for topic, ids in ring.ids().items()}
    found = sorted(traces(folder, WORDS, TOKENS))
    last[0] = begun = time.monotonic()
    erasure_id = await ring.forget()
    seconds = time.monotonic() - begun
    certificate = ring.erasures.read(erasure_id, CERTIFICATE)
    after = {topic: len(ids) for topic, ids in ring.ids().items()}
    left = traces(folder, [*WORDS, JANE], TOKENS)
    ring.close()
    return {
        "conversations": conversations,
        "filled_seconds": round(filled, 1),
        "erased_seconds": round(seconds, 1),
        "steps_seconds": steps,
        "found_before": found,
        "found_after": {store: sorted(files) for store, files in left.items()},
        "rows_before": before,
        "rows_after": after,
        "removed": certificate and certificate["removed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=10_000)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), parser.parse_args().conversations))
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        figures["data_mib"] = round(size / 2**20, 1)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
