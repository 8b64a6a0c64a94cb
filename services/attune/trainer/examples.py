"""What the trainer reads of a dataset's rows."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow


@dataclass(frozen=True)
class Example:
    """A response and whether a user liked it.

    Whose feedback it is stands in `end_user`; where nobody is named, each conversation counts as a user of its own.
    `weight` is how much it counts, 1 for a whole one.
    """

    prompt_token_ids: list[int]
    output_token_ids: list[int]
    liked: bool
    end_user: str
    policy_id: str
    created_unix_ms: int
    weight: float = 1.0


_COLUMNS = ("prompt_token_ids", "output_token_ids", "end_user", "policy_id", "created_unix_ms", "weight")


def read_examples(table: pyarrow.Table, split: str, base_model_hash: str) -> list[Example]:
    """The rows of one split, oldest first, that hold an answer made on this base model and count at all.

    Another base may have another tokenizer, for which the logged ids would be nonsense.
    """
    rows = table.select([*_COLUMNS, "label", "split", "base_model_hash", "response_id", "conversation_id"]).to_pylist()
    rows.sort(key=lambda row: (row["created_unix_ms"], row["response_id"]))
    return [
        Example(
            **{column: row[column] for column in _COLUMNS}
            | {"end_user": row["end_user"] or row["conversation_id"], "liked": row["label"] == "liked"}
        )
        for row in rows
        if row["split"] == split
        and row["base_model_hash"] == base_model_hash
        and row["output_token_ids"]
        and row["weight"] > 0
    ]


def shuffled(examples: Iterable[Example], seed: int) -> Sequence[Example]:
    """The same examples in an order that only the seed decides."""
    order = list(examples)
    random.Random(seed).shuffle(order)
    return order


def sample_replay(replay: Sequence[Example], examples: int, share: float, seed: int) -> list[Example]:
    """As many as `share` of the examples says, or all there are; the same for the same seed."""
    return random.Random(f"replay/{seed}").sample(replay, min(len(replay), round(examples * share)))


def least_label_share(examples: Sequence[Example]) -> float:
    """The share of the rarer thumb, 0 to 0.5."""
    liked = sum(example.liked for example in examples)
    return min(liked, len(examples) - liked) / len(examples) if examples else 0.0
