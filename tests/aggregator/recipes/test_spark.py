"""Spark finds the rows that DuckDB finds, on real Delta tables."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from attune.aggregator.build import BuildRules, build_dataset
from attune.aggregator.recipe import load_recipe, recipe_names
from attune.errors import FailedPrecondition
from attune.lake.dataset import Dataset
from attune.lake.left_out import list_left_out
from attune.lake.snapshot import Source, read_snapshot
from attune.lake.spark import SparkSnapshot, open_spark_snapshot
from tests.aggregator.plant import SPLIT_KEY
from tests.aggregator.recipes.story import ARGUMENTS, story, write_lake
from tests.lake.events import NOW_UNIX_MS


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    events, place = story(), tmp_path_factory.mktemp("spark") / "lake"
    write_lake(place, [*events, *events[::3]], batch=90)
    return place


@pytest.fixture(scope="module")
def spark(lake: Path) -> Iterator[SparkSnapshot]:
    # Compiling well what runs once costs more than it saves.
    os.environ["JDK_JAVA_OPTIONS"] = "-XX:TieredStopAtLevel=1"
    try:
        with open_spark_snapshot(lake) as snapshot:
            yield snapshot
    except FailedPrecondition as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(error.message)
    finally:
        del os.environ["JDK_JAVA_OPTIONS"]


def build(source: Source, folder: Path, recipe: str) -> Dataset:
    return build_dataset(
        source,
        folder,
        tenant="default",
        persona="concierge",
        recipe=load_recipe(recipe),
        rules=BuildRules(1, 30, 0.4, arguments={"rewards": ARGUMENTS}),
        split_key=SPLIT_KEY,
        now_unix_ms=NOW_UNIX_MS,
    )


@pytest.mark.parametrize("recipe", recipe_names())
def test_both_engines_make_the_same_dataset(spark: SparkSnapshot, lake: Path, tmp_path: Path, recipe: str) -> None:
    with read_snapshot(lake) as snapshot:
        here = build(snapshot, tmp_path / "here", recipe)
    there = build(spark, tmp_path / "there", recipe)
    assert there.table().to_pylist() == here.table().to_pylist()
    assert there.manifest.counts == here.manifest.counts
    assert there.manifest.dataset_id == here.manifest.dataset_id
    assert there.manifest.feedback_positions == here.manifest.feedback_positions
    reasons = [sorted(list_left_out(tmp_path / which)[0].rows()) for which in ("here", "there")]
    assert reasons[0] == reasons[1]


@pytest.mark.usefixtures("spark")
def test_python_and_java_wait_for_one_another_on_a_busy_machine() -> None:
    assert int(os.environ["SPARK_AUTH_SOCKET_TIMEOUT"]) == 600, "or what is handed over fails after 15 s"
