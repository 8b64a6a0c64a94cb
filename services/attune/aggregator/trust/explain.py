"""Why a row is in a dataset, weighs what it weighs, or is in none."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from attune.aggregator.reasons import sentence
from attune.lake.dataset import Dataset, list_datasets
from attune.lake.left_out import list_left_out

_COLUMNS = [
    "example_id", "label", "split", "weight", "weighed_by", "people", "feedback_ids", "response_ids", "created_unix_ms",
]  # fmt: skip
MOST = 100

_WHY = {
    "control_questions": "who gave it is right about {found:.0%} of known answers; {limit:.0%} would be enough",
    "reviewers_agreement": "who gave it judges {found:.0%} as other reviewers would; {limit:.0%} would be enough",
    "conversation_cap": "its conversation would weigh {found:.4g}; one may weigh {limit:.4g}",
    "person_in_cluster_cap": "who gave it would weigh {found:.4g} on prompts like this; one may weigh {limit:.4g}",
    "coordinated": "{found:.0f} people said the same of prompts like this at once; {limit:.2g} would by chance",
    "cluster_cap": "prompts like this would weigh {found:.4g}; they may weigh {limit:.4g}",
    "person_cap": "who gave it would weigh {found:.4g}; one person may weigh {limit:.4g}",
}


@dataclass(frozen=True)
class Weighed:
    """A row of a dataset; `given` is what the recipe gave it, `steps` are factors with their reasons, in order."""

    dataset: Dataset
    example_id: str
    label: str
    split: str
    created_unix_ms: int
    people: int
    given: float
    weight: float
    steps: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Missing:
    """A signal that the newest build of a recipe made no example of."""

    persona: str
    recipe: str
    feedback_id: str
    reason: str


def explain(folder: Path, tenant: str, name: str) -> Iterator[Weighed | Missing]:
    """What became of an example, a signal or a response, by its id, in the newest dataset of each persona and recipe.

    Raises DataLoss for a dataset that is damaged.
    """
    newest = {
        (dataset.manifest.persona, dataset.manifest.recipe.name): dataset for dataset in list_datasets(folder, tenant)
    }
    for _, dataset in sorted(newest.items()):
        for part in dataset.files(_COLUMNS):
            for row in part.filter(_named(part, name)).to_pylist():
                yield _weighed(dataset, row)
    for left_out in list_left_out(folder):
        if left_out.tenant == tenant:
            for feedback_id, reason in left_out.rows():
                if feedback_id == name:
                    yield Missing(left_out.persona, left_out.recipe, feedback_id, sentence(left_out.recipe, reason))


def _named(part: pa.Table, name: str) -> pa.Array:
    """Which rows have the id as their own, or among those that they were made of."""
    columns = (part[column].to_pylist() for column in ("example_id", "feedback_ids", "response_ids"))
    # Not by Arrow's indices_nonzero: where there are no rows it crashes the process.
    return pa.array(
        [
            name == own or name in (said or ()) or name in (answers or ())
            for own, said, answers in zip(*columns, strict=True)
        ],
        pa.bool_(),
    )


def _weighed(dataset: Dataset, row: dict[str, Any]) -> Weighed:
    steps, given = [], float(row["weight"])
    for step in row["weighed_by"]:
        steps.append((step["factor"], _WHY[step["step"]].format(**step)))
        given = given / step["factor"] if step["factor"] else 0.0
    return Weighed(
        dataset,
        row["example_id"],
        row["label"],
        row["split"],
        row["created_unix_ms"],
        len(row["people"]),
        given,
        row["weight"],
        tuple(steps),
    )
