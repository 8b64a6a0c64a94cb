"""Prompts with their right answers, and where the shipped ones are."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
PERSONAS = FOLDER / "personas"
REGRESSION = FOLDER / "regression.jsonl"
HELDOUT = FOLDER / "heldout.jsonl"
REPLAY = FOLDER / "replay.jsonl"

ERRANDS_SKILL = "errands"


@dataclass(frozen=True)
class Item:
    """A prompt to one persona, in OpenAI's form; `answer` is the one right answer, None for errands: they have none."""

    skill: str
    persona: str
    messages: tuple[dict[str, Any], ...]
    answer: str | None = None
    tools: tuple[dict[str, Any], ...] = ()


def load_items(path: Path) -> list[Item]:
    """Reads one item a line, in the file's order."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [
        Item(row["skill"], row["persona"], tuple(row["messages"]), row.get("answer"), tuple(row.get("tools", ())))
        for row in rows
    ]


def save_items(path: Path, items: Iterable[Item]) -> None:
    lines = []
    for item in items:
        row = asdict(item)
        if item.answer is None:
            del row["answer"]
        if not item.tools:
            del row["tools"]
        lines.append(json.dumps(row, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
