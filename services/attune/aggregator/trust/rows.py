"""What weights are decided by, kept small: texts and names become numbers as the rows pass by."""

import functools
import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

NEEDED = ("example_id", "givers", "conversation_id", "label", "weight", "messages", "created_unix_ms", "split")
KEYWORDS = 6
"""Of a prompt at most so many count: in so many prompt clusters it is at most."""

_KEYWORD_PEOPLE = 3  # a word that fewer use says nothing about what people ask for
_KEYWORD_SHARE = 0.5  # nor does one that most people use; counting prompts, a few could push a word out
_MOST_WORDS = 100
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Rows:
    """A dataset's rows in the order of their keys, so that nothing depends on the order in which they came.

    Arrays of one number a row, but for pairs: `given` (pairs, 2) are rows with who gave them, as numbers from 0, and
    `about` (pairs, 2) are rows with the prompt clusters that they are in.
    """

    keys: Keys
    weights: Floats
    created_unix_ms: Ints
    labels: Ints
    splits: Ints
    conversations: Ints
    """-1 for none."""
    given: Ints
    about: Ints
    people: Keys
    """Whose the numbers in `given` are, as person_key says."""

    def __len__(self) -> int:
        return len(self.keys)


@functools.lru_cache(maxsize=1 << 16)
def key_of(text: str) -> int:
    """64 bits that stand for an id or a name."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def person_key(name: str, conversation_id: str, example_id: str) -> int:
    """Where nobody is named the conversation stands for a person, and where there is none the row does."""
    return key_of(f"person/{name}" if name else f"conversation/{conversation_id or example_id}")


class Collector:
    """Takes in rows batch by batch."""

    def __init__(self) -> None:
        self._columns: dict[str, list[NDArray[np.generic]]] = {}
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Columns as NEEDED says."""
        row = {name: batch.column(name).to_pylist() for name in NEEDED if name != "messages"}
        spoken = said_last(batch.column("messages"))
        conversations, examples = row["conversation_id"], row["example_id"]
        self._add("keys", [key_of(each) for each in examples], np.uint64)
        self._add("weights", row["weight"], np.float64)
        self._add("created", row["created_unix_ms"], np.int64)
        self._add("labels", [key_of(each) for each in row["label"]], np.uint64)
        self._add("splits", [each == "heldout" for each in row["split"]], np.int64)
        self._add("conversations", [key_of(each) if each else 0 for each in conversations], np.uint64)
        people = [
            (self._rows + number, person_key(name or "", conversations[number] or "", examples[number]))
            for number, names in enumerate(row["givers"])
            for name in set(names or [""])
        ]
        words = [(self._rows + number, word) for number, text in enumerate(spoken) for word in words_of(text)]
        for name, pairs in (("given", people), ("words", words)):
            self._add(f"{name} rows", [pair[0] for pair in pairs], np.int64)
            self._add(name, [pair[1] for pair in pairs], np.uint64)
        self._rows += len(examples)

    def rows(self) -> Rows:
        """All of them."""
        whole = {
            name: np.concatenate(self._columns[name]) if name in self._columns else np.empty(0, kind)
            for name, kind in _KINDS.items()
        }
        order = np.argsort(whole["keys"], kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        people, person = np.unique(whole["given"], return_inverse=True)
        conversations, conversation = np.unique(whole["conversations"], return_inverse=True)
        nowhere = conversations[conversation] == 0
        given = _pairs(place[whole["given rows"]], person)
        return Rows(
            keys=whole["keys"][order],
            weights=whole["weights"][order],
            created_unix_ms=whole["created"][order],
            labels=np.unique(whole["labels"], return_inverse=True)[1][order],
            splits=whole["splits"][order],
            conversations=np.where(nowhere, -1, conversation)[order],
            given=given,
            about=_clusters(place[whole["words rows"]], whole["words"], given, len(people)),
            people=people,
        )

    def _add(self, name: str, values: list[int] | list[float], kind: type[np.generic]) -> None:
        self._columns.setdefault(name, []).append(np.array(values, kind))


_KINDS: dict[str, type[np.generic]] = {
    "keys": np.uint64,
    "weights": np.float64,
    "created": np.int64,
    "labels": np.uint64,
    "splits": np.int64,
    "conversations": np.uint64,
    "given rows": np.int64,
    "given": np.uint64,
    "words rows": np.int64,
    "words": np.uint64,
}


def said_last(messages: pa.Array) -> list[str]:
    """Of each conversation the last that a user said; empty where none did."""
    roles = messages.flatten().field("role").to_pylist()
    texts = messages.flatten().field("content").to_pylist()
    lengths = messages.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    return [
        next((texts[at] or "" for at in range(end - 1, start - 1, -1) if roles[at] == "user"), "")
        for start, end in zip(starts, ends, strict=True)
    ]


def words_of(text: str) -> Iterable[int]:
    """The different words among the first hundred, as numbers."""
    return {zlib.crc32(word.encode()) for word in _WORD.findall(text.lower()[: 16 * _MOST_WORDS])[:_MOST_WORDS]}


def _clusters(rows: Ints, words: Keys, given: Ints, everybody: int) -> Ints:
    """Pairs of a row and a prompt cluster: all prompts that share a keyword are one cluster.

    A prompt's keywords are those of its words that the fewest people use, of words that some use at all: how specific
    a word is, is said by how many documents have it (Spärck Jones 1972, "A statistical interpretation of term
    specificity"). Clusters overlap, as canopies do (McCallum, Nigam and Ungar 2000): no word is the topic.
    """
    if not len(rows):
        return np.empty((0, 2), np.int64)
    known, word = np.unique(words, return_inverse=True)
    spoken = np.stack([rows, word], axis=1)
    by_person = np.unique(join(spoken, given)[:, 1:], axis=0) if len(given) else np.empty((0, 2), np.int64)
    people = np.bincount(by_person[:, 0], minlength=len(known))
    telling = (people >= _KEYWORD_PEOPLE) & (people <= _KEYWORD_SHARE * everybody)
    kept = spoken[telling[word]]
    order = np.lexsort((known[kept[:, 1]], people[kept[:, 1]], kept[:, 0]))
    kept = kept[order]
    first = np.searchsorted(kept[:, 0], kept[:, 0])
    found: Ints = kept[np.arange(len(kept)) - first < KEYWORDS]
    return found


def join(left: Ints, right: Ints) -> Ints:
    """(row, a) and (row, b) to (row, a, b); `right` is sorted by row."""
    start = np.searchsorted(right[:, 0], left[:, 0], side="left")
    count = np.searchsorted(right[:, 0], left[:, 0], side="right") - start
    at = np.repeat(start - np.cumsum(count) + count, count) + np.arange(count.sum())
    joined: Ints = np.column_stack([np.repeat(left, count, axis=0), right[at, 1]])
    return joined


def _pairs(rows: Ints, numbers: Ints) -> Ints:
    pairs = np.stack([rows, numbers], axis=1)
    found: Ints = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return found
