"""When a dataset is due, and that its content depends on nothing but what was said."""

import pytest

from attune.aggregator.build import Builder, BuildRules
from attune.errors import Unavailable
from attune.eventlog import FEEDBACK, RESPONSES
from attune.lake.dataset import Dataset, list_datasets, open_dataset
from attune.lake.snapshot import open_snapshot, read_snapshot
from attune.settings import TrustSettings
from attune.v1 import event_pb2
from tests.aggregator.plant import SPLIT_KEY, Plant
from tests.aggregator.recipes.conversation import opinion
from tests.aggregator.recipes.story import story
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event


def build_if_due(
    plant: Plant, build_feedback: int, persona: str = "concierge", builder: Builder | None = None
) -> Dataset | None:
    plant.ingest_all()
    builder = builder or Builder(plant.folder / "datasets", BuildRules(build_feedback, 30, 0.2), SPLIT_KEY)
    with open_snapshot(plant.lake) as snapshot:
        build_if_due.clock += 1  # type: ignore[attr-defined]
        return builder.build_if_due(snapshot, "default", persona, "thumbs", NOW_UNIX_MS + build_if_due.clock)  # type: ignore[attr-defined]


build_if_due.clock = 0  # type: ignore[attr-defined]


def test_a_dataset_is_due_when_enough_new_thumbs_have_come_also_after_a_restart(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(20)], *[thumb_event(n, n) for n in range(4)])
    assert build_if_due(plant, 5) is None
    plant.append(thumb_event(4, 4))
    first = build_if_due(plant, 5)
    assert first is not None
    assert first.table().num_rows == 5
    assert build_if_due(plant, 5) is None
    plant.append(*[thumb_event(n, n) for n in range(5, 9)])
    assert build_if_due(plant, 5) is None
    plant.append(thumb_event(9, 9))
    second = build_if_due(plant, 5)
    assert second is not None
    assert second.table().num_rows == 10
    assert list_datasets(plant.folder / "datasets", "default", "concierge") == [first, second]


def test_revisions_of_older_thumbs_and_other_peoples_personas_are_not_new(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(6)], *[thumb_event(n, n) for n in range(3)])
    assert build_if_due(plant, 3) is not None
    plant.append(*[thumb_event(10 + n, n, revision=1) for n in range(3)])
    plant.append(*[thumb_event(20 + n, n, persona="tutor") for n in range(3)])
    plant.append(*[thumb_event(30 + n, 4, revision=n) for n in range(3)])
    assert build_if_due(plant, 2) is None
    assert build_if_due(plant, 1) is not None


def test_thumbs_that_name_no_persona_count_for_their_responses_persona(plant: Plant) -> None:
    nameless = [thumb_event(n, n) for n in range(3)]
    for event in nameless:
        event.ClearField("persona")
    plant.append(*[response_event(n) for n in range(3)], *nameless)
    assert build_if_due(plant, 1, persona="tutor") is None
    assert build_if_due(plant, 3) is not None


def test_thumbs_that_make_no_example_do_not_build_again_and_again(plant: Plant) -> None:
    plant.append(response_event(1), thumb_event(1, 1))
    builder = Builder(plant.folder / "datasets", BuildRules(1, 30, 0.2), SPLIT_KEY)
    assert build_if_due(plant, 1, builder=builder) is not None
    plant.append(thumb_event(2, 77))
    assert build_if_due(plant, 1, builder=builder) is None
    assert builder._tried
    plant.append(response_event(2), thumb_event(4, 2))
    assert build_if_due(plant, 1, builder=builder) is not None


def test_the_manifest_says_what_went_in(plant: Plant) -> None:
    plant.append(*[response_event(n) for n in range(10)], *[thumb_event(n, n) for n in range(10)], thumb_event(50, 99))
    dataset = build_if_due(plant, 1)
    assert dataset is not None
    manifest = open_dataset(dataset.folder).manifest
    assert manifest.recipe.name == "thumbs"
    assert "one row for each response and each person" in manifest.recipe.text
    assert manifest.settings == {
        "window_days": 30,
        "heldout_share": 0.2,
        "trust": TrustSettings().model_dump(mode="json"),
    }
    assert manifest.feedback_positions == {f"{plant.log.log_id(FEEDBACK)}/0": 11}
    assert set(manifest.table_versions) == {"responses", "feedback"}
    assert manifest.counts["left_out"] == {"unknown_response": 1}
    assert sum(sum(manifest.counts[split].values()) for split in ("train", "heldout")) == 10


def test_an_empty_lake_builds_nothing(plant: Plant) -> None:
    assert build_if_due(plant, 1) is None
    assert plant.build().table().num_rows == 0


@pytest.mark.parametrize("name", ["heldout_share", "window_days"])
def test_other_settings_give_another_dataset(plant: Plant, name: str) -> None:
    plant.append(*story())
    plant.ingest_all()
    assert plant.build().manifest.dataset_id != plant.build(**{name: 0.5}).manifest.dataset_id  # type: ignore[arg-type]


def test_ingest_goes_on_from_the_handle_that_a_snapshot_read(plant: Plant) -> None:
    plant.append(response_event(1))
    ingest = plant.ingest(RESPONSES)
    ingest.poll()
    with open_snapshot(plant.lake) as snapshot:
        plant.append(response_event(2))
        ingest.poll()
        assert snapshot.rows("SELECT count(*) FROM responses") == [(1,)]
    with open_snapshot(plant.lake) as snapshot:
        assert snapshot.rows("SELECT count(*) FROM responses") == [(2,)]


def test_each_recipe_is_due_by_the_signals_that_it_reads(plant: Plant) -> None:
    rules = BuildRules(2, 30, 0.2, recipes=("thumbs", "demonstrations"), persona_recipes={"tutor": ("prompts",)})
    builder = Builder(plant.folder / "datasets", rules, SPLIT_KEY)

    def made(persona: str) -> list[str]:
        plant.ingest_all()
        with open_snapshot(plant.lake) as snapshot:
            builder.build_due(snapshot, "default", persona, NOW_UNIX_MS)
        return sorted(one.manifest.recipe.name for one in list_datasets(plant.folder / "datasets", "default", persona))

    plant.append(*[response_event(n) for n in range(4)], thumb_event(0, 0), opinion(1, 1, rating=5))
    assert made("concierge") == []
    plant.append(thumb_event(2, 2))
    assert made("concierge") == ["thumbs"]
    plant.append(opinion(3, 3, rating=5))
    assert made("concierge") == ["demonstrations", "thumbs"]
    plant.append(*[response_event(n, persona="tutor") for n in (5, 6)])
    plant.append(*[thumb_event(n, n, persona="tutor") for n in (5, 6)])
    assert made("tutor") == ["prompts"]


def test_an_outcome_of_a_conversation_is_new_for_its_responses_persona(plant: Plant) -> None:
    solved = opinion(1, 1, outcome=event_pb2.Outcome(name="solved", flag=True), name="solved")
    solved.response_id = solved.persona = ""
    plant.append(response_event(1), solved)
    plant.ingest_all()
    rules = BuildRules(1, 30, 0.2, arguments={"rewards": {"outcome.solved": 1.0}})
    builder = Builder(plant.folder / "datasets", rules, SPLIT_KEY)
    with open_snapshot(plant.lake) as snapshot:
        assert builder.build_if_due(snapshot, "default", "tutor", "rewards", NOW_UNIX_MS) is None
        dataset = builder.build_if_due(snapshot, "default", "concierge", "rewards", NOW_UNIX_MS)
    assert dataset is not None
    assert dataset.table()["score"].to_pylist() == [1.0]


def test_what_takes_more_memory_than_it_may_is_refused_with_the_setting_that_gives_more(plant: Plant) -> None:
    plant.append(response_event(1), thumb_event(1, 1))
    plant.ingest_all()
    with read_snapshot(plant.lake.place, memory_mib=64) as snapshot:
        # It comes up once rows are fetched, and not before.
        later = "SELECT repeat('x', CASE WHEN range < 100_000 THEN 1 ELSE 300_000_000 END) AS text FROM range(200_000)"
        refused = "it takes more memory than it may; raise aggregator.build_memory_mib$"
        with pytest.raises(Unavailable, match=refused):
            snapshot.run(later, {}).read_all()
