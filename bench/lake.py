"""Measures building a dataset: `python -m bench.lake`.

`pairs` from a million responses and 300,000 rows of feedback, from the tables to files that are durable, against the
same join written by hand in DuckDB and fetched into memory: no reasons, no splits, no hash, no files, and nothing is
looked for that may be there twice. Both with the same threads, in processes of their own, one after the other, several
rounds. Then the same with more responses, for what grows. Writes the section `Datasets` of docs/measurements.md, and
docs/lake.png.
"""

# ruff: noqa: T201 - it talks to the terminal, and its processes to each other

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
from deltalake import DeltaTable

from attune.aggregator.build import BuildRules, build_dataset
from attune.aggregator.recipe import load_recipe
from attune.lake.snapshot import read_snapshot
from bench.lake_tables import NOW_UNIX_MS, PERSONA, TENANT, write_lake
from bench.serving import interval, machine, write_section

THREADS = 2
DOCS = Path(__file__).parent.parent / "docs"

BY_HAND = """
WITH said AS (
    SELECT * FROM feedback
    QUALIFY row_number() OVER (
        PARTITION BY response_id, end_user, kind, name ORDER BY revision DESC, created_unix_ms DESC
    ) = 1
),
voted AS (
    SELECT
        s.response_id, s.thumb, hash(r.messages) AS prompt,
        row_number() OVER (PARTITION BY hash(r.messages), s.thumb ORDER BY s.created_unix_ms) AS number
    FROM said AS s JOIN responses AS r USING (response_id)
    WHERE s.kind = 'thumb' AND NOT s.retracted
),
ranked AS (
    SELECT event_id, unnest(ranking, recursive := true) FROM said WHERE kind = 'ranking' AND NOT retracted
),
pairs AS (
    SELECT u.response_id AS chosen, d.response_id AS rejected, NULL AS correction
    FROM voted AS u JOIN voted AS d ON u.prompt = d.prompt AND u.number = d.number
    WHERE u.thumb = 'up' AND d.thumb = 'down'
    UNION ALL
    SELECT b.response_id, w.response_id, NULL
    FROM ranked AS b JOIN ranked AS w ON b.event_id = w.event_id AND b.rank < w.rank
    UNION ALL
    SELECT NULL, response_id, correction FROM said WHERE kind = 'correction' AND NOT retracted
)
SELECT
    w.persona, w.persona_version, w.conversation_id, w.turn, w.messages, w.tools, w.prompt_token_ids,
    coalesce(p.correction, c.text) AS chosen, c.policy_id, c.output_token_ids, c.output_logprobs,
    w.text AS rejected, w.policy_id AS rejected_policy_id, w.output_token_ids AS rejected_token_ids,
    w.output_logprobs AS rejected_logprobs, w.base_model_hash, w.chat_template_hash
FROM pairs AS p
JOIN responses AS w ON w.response_id = p.rejected
LEFT JOIN responses AS c ON c.response_id = p.chosen
"""


@dataclass(frozen=True)
class Reading:
    """One build: time, the process's largest resident memory, and how many rows came out."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    rows: int


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--responses", type=int, nargs="+", default=[1_000_000, 2_000_000, 3_000_000])
    arguments.add_argument("--feedback", type=int, default=300_000)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="keep the tables here, and use those that are there")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        readings = {
            count: measure(tables(chosen.folder or Path(scratch), count, chosen.feedback), chosen.rounds)
            for count in chosen.responses
        }
    plot(readings, DOCS / "lake.png")
    write_section(DOCS / "measurements.md", report(readings, chosen.feedback, chosen.rounds))
    print(report(readings, chosen.feedback, chosen.rounds))


def tables(folder: Path, responses: int, feedback: int) -> Path:
    lake = folder / f"lake-{responses}-{feedback}"
    if not lake.exists():
        print(f"writing {responses:,} responses and {feedback:,} rows of feedback", file=sys.stderr)
        write_lake(lake, responses, feedback)
    return lake


def measure(lake: Path, rounds: int) -> dict[str, list[Reading]]:
    """Taken in turns, so that what else the machine does falls on both."""
    found: dict[str, list[Reading]] = {"by-hand": [], "ours": []}
    for number in range(rounds):
        for name in sorted(found, reverse=number % 2 == 1):
            command = [sys.executable, "-m", "bench.lake", name, str(lake)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(Reading(**json.loads(said.splitlines()[-1])))
            print(lake.name, name, found[name][-1], file=sys.stderr)
    return found


def ours(lake: Path) -> int:
    datasets = Path(tempfile.mkdtemp(dir=lake.parent))
    try:
        with read_snapshot(lake, THREADS) as snapshot:
            dataset = build_dataset(
                snapshot,
                datasets,
                tenant=TENANT,
                persona=PERSONA,
                recipe=load_recipe("pairs"),
                rules=BuildRules(1, 30, 0.2),
                split_key=b"k" * 32,
                now_unix_ms=NOW_UNIX_MS,
            )
        return sum(file.rows for file in dataset.manifest.files)
    finally:
        shutil.rmtree(datasets)


def by_hand(lake: Path) -> int:
    connection = duckdb.connect(config={"threads": THREADS, "preserve_insertion_order": False})
    for name in ("responses", "feedback"):
        files = DeltaTable(lake / name).file_uris()
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({files!r})")
    rows: int = connection.sql(BY_HAND).to_arrow_table().num_rows
    return rows


def take(build: Any, lake: Path) -> None:
    began, started = time.perf_counter(), time.process_time()
    rows = build(lake)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = used.ru_utime + used.ru_stime - started
    print(json.dumps(asdict(Reading(seconds, cpu_seconds, used.ru_maxrss / 1024, rows))))


def report(readings: dict[int, dict[str, list[Reading]]], feedback: int, rounds: int) -> str:
    lines = [
        "## Datasets",
        "",
        f"`python -m bench.lake`: `pairs` from {feedback:,} rows of feedback on {THREADS} threads, from the lake's",
        "tables to durable files, beside the same join by hand in DuckDB, fetched into memory.",
        f"{machine()} {rounds} rounds, in turns; medians with 95 % intervals of a bootstrap, ratios within a round.",
        "",
        "| responses | attune, s | by hand, s | ratio | CPU ratio | attune, MiB | by hand, MiB | rows (by hand) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count, found in readings.items():
        ours, theirs = found["ours"], found["by-hand"]
        cells = [
            f"{count:,}",
            interval([one.seconds for one in ours], 1),
            interval([one.seconds for one in theirs], 1),
            interval([one.seconds / other.seconds for one, other in zip(ours, theirs, strict=True)], 2),
            interval([one.cpu_seconds / other.cpu_seconds for one, other in zip(ours, theirs, strict=True)], 2),
            interval([one.peak_mib for one in ours], 0),
            interval([one.peak_mib for one in theirs], 0),
            f"{ours[0].rows:,} ({theirs[0].rows:,})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    least, most = min(readings), max(readings)
    peaks = {count: statistics.median(one.peak_mib for one in readings[count]["ours"]) for count in (least, most)}
    lines += [
        "",
        f"attune's peak memory for {most:,} responses is {peaks[most] / peaks[least] - 1:+.0%} of that for {least:,}.",
        "",
        "![time and memory by responses](lake.png)",
        "",
    ]
    return "\n".join(lines)


def plot(readings: dict[int, dict[str, list[Reading]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    counts = sorted(readings)
    for axis, (field, title) in zip(
        figure.subplots(1, 2), (("seconds", "seconds"), ("peak_mib", "peak memory, MiB")), strict=True
    ):
        for name, label in (("ours", "attune: pairs, to durable files"), ("by-hand", "the join by hand, to memory")):
            values = [[getattr(one, field) for one in readings[count][name]] for count in counts]
            middle = [statistics.median(each) for each in values]
            spread = [[m - min(each) for m, each in zip(middle, values, strict=True)]]
            spread.append([max(each) - m for m, each in zip(middle, values, strict=True)])
            axis.errorbar([count / 1e6 for count in counts], middle, spread, marker="o", capsize=3, label=label)
        axis.set_xlabel("responses, millions")
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["ours", folder]:
            take(ours, Path(folder))
        case ["by-hand", folder]:
            take(by_hand, Path(folder))
        case _:
            main()
