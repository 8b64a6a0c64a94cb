"""What dialogues are made of, and which of the two sides a template is on."""

import random
import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One question and its answer; with the role `tool`, what a tool gave back and what is said to that."""

    user: str
    assistant: str
    role: str = "user"


def pick(rng: random.Random, trained: tuple[str, ...], heldout_ones: tuple[str, ...], heldout: bool) -> str:
    return rng.choice(heldout_ones if heldout else trained)


def is_heldout(*parts: str) -> bool:
    """Whether this combination belongs to the held-out fifth, which no training text contains."""
    return zlib.crc32("/".join(parts).encode()) % 5 == 0
