"""Weights in datasets that are built from a lake."""

from typing import Any

import pytest

from attune.aggregator.build import BuildRules, build_dataset
from attune.aggregator.recipe import load_recipe
from attune.aggregator.trust.explain import Missing, Weighed, explain
from attune.lake.dataset import Dataset
from attune.lake.snapshot import open_snapshot
from attune.settings import TrustSettings
from attune.v1 import event_pb2
from tests.aggregator.plant import SPLIT_KEY, Plant
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event


def build(plant: Plant, recipe: str = "thumbs", **trust: Any) -> Dataset:
    plant.ingest_all()
    plant.lake.reload()
    with open_snapshot(plant.lake) as snapshot:
        return build_dataset(
            snapshot,
            plant.folder / "datasets",
            tenant="default",
            persona="concierge",
            recipe=load_recipe(recipe),
            rules=BuildRules(1, 30, 0.2, trust=TrustSettings(**trust)),
            split_key=SPLIT_KEY,
            now_unix_ms=NOW_UNIX_MS,
        )


def control(number: int, about: int, good: bool, **changes: Any) -> event_pb2.FeedbackEvent:
    event = thumb_event(number, about, author=event_pb2.AUTHOR_APPLICATION, end_user="", name="control")
    event.ClearField("end_user")
    event.outcome.CopyFrom(event_pb2.Outcome(name="control", flag=good))
    event.MergeFrom(event_pb2.FeedbackEvent(**changes))
    return event


def weights(dataset: Dataset, person: str) -> set[float]:
    return {row["weight"] for row in dataset.table().to_pylist() if row["end_user"] == person}


def test_who_fails_control_questions_weighs_less_and_who_passes_them_does_not(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(40)])
    plant.append(*[thumb_event(2 * n, n) for n in range(40)])  # all of them up
    plant.append(*[control(1000 + n, n, good=n % 10 != 3) for n in range(40) if n % 10 in (3, 4)])
    dataset = build(plant)
    assert weights(dataset, "user-4") == {1.0}
    assert weights(dataset, "user-5") == {1.0}
    assert weights(dataset, "user-3") == {round((2 * 8 / 14 - 1) / 0.6, 6)}
    assert dataset.manifest.counts["weighed"]["control_questions"] == 4


@pytest.mark.parametrize(
    "changes", [{"author": event_pb2.AUTHOR_END_USER}, {"retracted": True}, {"name": "solved"}], ids=str
)
def test_only_what_an_application_says_makes_a_control_question(plant: Plant, changes: dict[str, Any]) -> None:
    plant.append(*[response_event(n) for n in range(40)], *[thumb_event(2 * n, n) for n in range(40)])
    plant.append(*[control(1000 + n, n, good=False, **changes) for n in range(40) if n % 10 == 3])
    assert weights(build(plant), "user-3") == {1.0}


def test_reviewers_who_contradict_the_others_weigh_less_where_it_is_set(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(40)])
    for place, name in enumerate(("ann", "ben", "eve")):
        plant.append(
            *[
                thumb_event(
                    100 * (place + 1) + n,
                    n,
                    end_user=name,
                    author=event_pb2.AUTHOR_REVIEWER,
                    thumb=event_pb2.THUMB_UP if (n % 3 == 0) != (name == "eve") else event_pb2.THUMB_DOWN,
                )
                for n in range(40)
            ]
        )
    assert weights(build(plant), "eve") == {1.0}
    agreed = build(plant, reviewers_agreement=True)
    assert weights(agreed, "ann") == weights(agreed, "ben") == {1.0}
    assert weights(agreed, "eve") == {0.0}


def test_settings_of_trust_are_part_of_what_a_dataset_is_made_by(plant: Plant) -> None:
    plant.append(response_event(1), thumb_event(1, 1))
    first, second = build(plant), build(plant, person_times=5)
    assert first.manifest.dataset_id != second.manifest.dataset_id
    assert second.manifest.settings["trust"]["person_times"] == 5
    assert set(first.manifest.counts["weighed"]) == {
        "control_questions",
        "conversation_cap",
        "person_in_cluster_cap",
        "coordinated",
        "cluster_cap",
        "person_cap",
    }
    off = build(plant, enabled=False)
    assert off.manifest.counts["weighed"] == {}


@pytest.mark.parametrize("recipe", ["thumbs", "pairs", "prompts", "recovery", "rewards", "demonstrations"])
def test_every_recipes_rows_are_weighed(plant: Plant, recipe: str) -> None:
    plant.append(*[response_event(n) for n in range(4)], *[thumb_event(n, n) for n in range(4)])
    assert build(plant, recipe).manifest.counts["weighed"]["person_cap"] == 0


def test_it_is_explained_why_a_row_is_in_weighs_so_much_or_is_out(plant: Plant) -> None:
    plant.append(*[response_event(n, conversation_id="c-1", end_user="user-1") for n in range(16)])
    plant.append(*[thumb_event(n, n, conversation_id="c-1", end_user="user-1") for n in range(16)])
    plant.append(thumb_event(50, 99))
    dataset = build(plant, conversation_weight=4)
    row = dataset.table().to_pylist()[0]
    folder = plant.folder / "datasets"
    for name in (row["example_id"], row["feedback_ids"][0], row["response_ids"][0]):
        (found,) = explain(folder, "default", name)
        assert isinstance(found, Weighed)
        assert (found.example_id, found.given, found.weight) == (row["example_id"], pytest.approx(1), 0.25)
        assert found.steps == ((0.25, "its conversation would weigh 16; one may weigh 4"),)
    (missing,) = explain(folder, "default", "feedback-50")
    assert isinstance(missing, Missing)
    assert (missing.recipe, missing.reason) == ("thumbs", "the response is not in the lake; the row joins once it is")
    assert list(explain(folder, "other", row["example_id"])) == []
    assert list(explain(folder, "default", "")) == []
