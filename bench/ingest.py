"""Measures ingest: `python -m bench.ingest`.

Responses wait in a spool, as inference writes them; ingest moves them into the lake, exactly once and durably, with
and without masking what is personal. Beside it, in the same round and on the same cores, what cannot be left out: the
same bytes read with a plain SELECT, decoded with protobuf and written to a bare Delta table in batches of the same
size, with no look at ids or offsets, no checksums and nothing made durable. Each in a process of its own, in turns.
Writes the section `Ingest` of docs/measurements.md with --write.
"""

# ruff: noqa: T201 - it talks to the terminal, and its processes to each other

import argparse
import json
import os
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from attune.aggregator.ingest import Ingest
from attune.aggregator.privacy.guard import Guard
from attune.aggregator.privacy.scrubber import Scrubber
from attune.eventlog import RESPONSES, SqliteLog, SqliteLogReader
from attune.lake.lake import Lake
from attune.settings import PrivacySettings
from attune.v1 import event_pb2
from bench.serving import interval, machine, write_section

BATCH_RECORDS = 2000
PROMPT_TOKENS, OUTPUT_TOKENS = 200, 120
WORDS = "the station a cab to please call me at once and then for my friend who is late today".split()  # noqa: SIM905
MEASUREMENTS = Path(__file__).parents[1] / "docs" / "measurements.md"
WAYS = ("bare", "attune", "attune, masking")

Figures = dict[str, float]
Found = dict[str, list[Figures]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--records", type=int, default=40_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--cores", default="0,1", help="which both run on")
    arguments.add_argument("--write", action="store_true", help="put the figures into docs/measurements.md")
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.way:
        print(json.dumps(run(given.way, given.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as folder:
        measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
    size = fill(folder / "spool", given.records)
    print(f"{given.records:,} responses, {size / 1e6:.0f} MB")
    found = in_turns(given, "bench.ingest", WAYS, "--folder", str(folder))
    publish(given, [*heading(given, size), *compared(given.records, found)])


def in_turns(given: argparse.Namespace, module: str, ways: Sequence[str], *arguments: str) -> Found:
    """Figures of each round by way; each way is a process of its own, which says its figures on standard output."""
    found: Found = {way: [] for way in ways}
    for number in range(given.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            command = ["taskset", "-c", given.cores, sys.executable, "-m", module, "--way", way, *arguments]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            figures: Figures = json.loads(ended.stdout)
            found[way].append(figures)
            print(f"round {number + 1}, {way}: {figures['seconds']:.1f} s, {figures['cpu_seconds']:.1f} s of CPU")
    return found


def publish(given: argparse.Namespace, lines: Sequence[str]) -> None:
    """Prints a section, and writes it where that was asked for."""
    text = "\n".join(lines) + "\n"
    print(text)
    if given.write:
        write_section(MEASUREMENTS, text)


def heading(given: argparse.Namespace, size: int) -> list[str]:
    cores = len(given.cores.split(","))
    return [
        "## Ingest",
        "",
        f"`python -m bench.ingest`, {machine()}",
        f"{given.records:,} responses of {PROMPT_TOKENS} tokens in and {OUTPUT_TOKENS} out, {size / 1e6:.0f} MB, from",
        f"the spool to the lake on {cores} cores, {given.rounds} rounds in turns. The bare one reads, decodes and",
        "writes the same bytes to a Delta table, and no more. Other work ran on the machine: read the ratios, and of",
        "these those of CPU time.",
        "",
    ]


def compared(records: int, found: Found) -> list[str]:
    """A table of the ways, each beside the first in the same round."""
    lines = [
        "| | responses a second, median (lowest to highest) | bare time / time | bare CPU / CPU | peak memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    bare = next(iter(found))
    for way in found:
        rates = [records / figures["seconds"] for figures in found[way]]
        pairs = list(zip(found[bare], found[way], strict=True))
        beside = [
            "" if way == bare else interval([theirs[what] / ours[what] for theirs, ours in pairs], 2)
            for what in ("seconds", "cpu_seconds")
        ]
        peak = max(figures["mib"] for figures in found[way])
        lines.append(
            f"| {way} | {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | "
            f"{' | '.join(beside)} | {peak:,.0f} |"
        )
    return lines


def fill(folder: Path, records: int) -> int:
    """Bytes of the records."""
    chance = random.Random(1)
    log = SqliteLog(folder, max_bytes=1 << 34, readers=("aggregator",), feedback_share=0.1)
    size, waiting = 0, []
    for number in range(records):
        payload = response(number, chance).SerializeToString()
        size += len(payload)
        waiting.append(log.append(RESPONSES, b"c", payload))
    for future in waiting:
        future.result(60)
    log.close()
    return size


def response(number: int, chance: random.Random) -> event_pb2.ResponseEvent:
    def text(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    event = event_pb2.ResponseEvent(
        response_id=f"r-{number:012d}",
        persona="concierge",
        persona_version="0123456789abcdef",
        policy_id="p-000007",
        request_group=f"g-{number:012d}",
        conversation_id=f"c-{number // 3:012d}",
        turn=number % 3 + 1,
        client_request_id=f"q-{number:012d}",
        end_user=f"{number % 997:032x}",
        source=event_pb2.SOURCE_SERVED,
        metadata={"app": "1.0", "locale": "de"},
        messages=[
            event_pb2.Message(role=event_pb2.ROLE_SYSTEM, content=text(30)),
            event_pb2.Message(role=event_pb2.ROLE_USER, content=text(60)),
        ],
        prompt_token_ids=[chance.randrange(150_000) for _ in range(PROMPT_TOKENS)],
        output_token_ids=[chance.randrange(150_000) for _ in range(OUTPUT_TOKENS)],
        output_logprobs=[-chance.random() for _ in range(OUTPUT_TOKENS)],
        logprobs_mode="processed_logprobs",
        sampling=event_pb2.Sampling(temperature=0.8, top_p=1, top_k=0, max_tokens=256, seed=number),
        finish_reason=event_pb2.FINISH_REASON_STOP,
        text=text(80),
        timings=event_pb2.Timings(received_unix_ms=1_790_000_000_000 + number, first_token_ms=3.5, total_ms=90.5),
        base_model_hash="b" * 64,
        tokenizer_hash="t" * 64,
        chat_template_hash="c" * 64,
    )
    event.header.event_id = f"e-{number:012d}"
    event.header.schema_version = 1
    event.header.tenant = "default"
    event.header.created_unix_ms = 1_790_000_000_000 + number
    return event


def run(way: str, folder: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="lake-", dir=folder) as target:
        began, used = time.perf_counter(), time.process_time()
        if way == "bare":
            run_bare(folder / "spool", Path(target))
        else:
            run_attune(folder / "spool", Path(target), masking=way != "attune")
        seconds, used = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "cpu_seconds": used, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def run_attune(spool: Path, target: Path, *, masking: bool) -> None:
    log = SqliteLogReader(spool)
    guard = Guard(Scrubber.from_settings(PrivacySettings()) if masking else None)
    ingest = Ingest(log, Lake(target), RESPONSES, batch_records=BATCH_RECORDS, guard=guard)
    while ingest.poll():
        pass
    log.close()


def run_bare(spool: Path, target: Path) -> None:
    """The same columns, as who knows the message would write them by hand."""
    connection = sqlite3.connect(f"{(spool / 'events.sqlite').as_uri()}?mode=ro", uri=True)
    cursor = connection.execute("SELECT payload FROM records WHERE topic = ? ORDER BY offset", (RESPONSES,))
    while payloads := cursor.fetchmany(BATCH_RECORDS):
        write_deltalake(target / "responses", decode([payload for (payload,) in payloads]), mode="append")


PLAIN = [
    "response_id", "persona", "persona_version", "policy_id", "request_group", "alternative", "conversation_id", "turn",
    "client_request_id", "end_user", "source", "logprobs_mode", "greedy", "grammar_masked", "finish_reason", "text",
    "base_model_hash", "tokenizer_hash", "chat_template_hash", "reasoning",
]  # fmt: skip
NESTED = {
    "header": ["event_id", "schema_version", "tenant", "created_unix_ms"],
    "sampling": ["temperature", "top_p", "top_k", "max_tokens", "seed"],
    "timings": ["received_unix_ms", "first_token_ms", "total_ms"],
}
LISTS = {
    "prompt_token_ids": pa.list_(pa.int64()),
    "output_token_ids": pa.list_(pa.int64()),
    "output_logprobs": pa.list_(pa.float32()),
}


def decode(payloads: list[bytes]) -> pa.Table:
    events = [event_pb2.ResponseEvent.FromString(payload) for payload in payloads]
    columns: dict[str, Any] = {name: [getattr(event, name) for event in events] for name in PLAIN}
    for part, names in NESTED.items():
        columns |= {name: [getattr(getattr(event, part), name) for event in events] for name in names}
    columns |= {name: pa.array([list(getattr(event, name)) for event in events], kind) for name, kind in LISTS.items()}
    columns["metadata"] = pa.array(
        [list(event.metadata.items()) for event in events], pa.map_(pa.string(), pa.string())
    )
    columns["messages"] = [
        [{"role": message.role, "content": message.content} for message in event.messages] for event in events
    ]
    return pa.table(columns)


if __name__ == "__main__":
    main()
