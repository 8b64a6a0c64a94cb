"""A dataset is a function of what was said: not of the order in which it came, how often, or how it lies in files."""

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from attune.aggregator.build import BuildRules, build_dataset
from attune.aggregator.recipe import load_recipe, recipe_names
from attune.lake.dataset import Manifest
from attune.lake.lake import Lake
from attune.lake.snapshot import open_snapshot
from tests.aggregator.plant import SPLIT_KEY
from tests.aggregator.recipes.story import ARGUMENTS, Event, story, write_lake
from tests.lake.events import NOW_UNIX_MS

EXPECTED: dict[str, Manifest] = {}


def build(lake: Lake, folder: Path, recipe: str) -> Manifest:
    with open_snapshot(lake, threads=1) as snapshot:
        return build_dataset(
            snapshot,
            folder / "datasets",
            tenant="default",
            persona="concierge",
            recipe=load_recipe(recipe),
            rules=BuildRules(1, 30, 0.4, arguments={"rewards": ARGUMENTS}),
            split_key=SPLIT_KEY,
            now_unix_ms=NOW_UNIX_MS,
        ).manifest


def expected(recipe: str) -> Manifest:
    """Of the story as it was told."""
    if recipe not in EXPECTED:
        with tempfile.TemporaryDirectory() as folder:
            EXPECTED[recipe] = build(write_lake(Path(folder) / "lake", story()), Path(folder), recipe)
    return EXPECTED[recipe]


@pytest.mark.parametrize("recipe", recipe_names())
def test_the_story_has_examples_and_what_is_none_for_every_recipe(recipe: str) -> None:
    counts = expected(recipe).counts
    assert sum(counts["train"].values()) + sum(counts["heldout"].values()) >= 2
    assert len(counts["left_out"]) >= 2


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    recipe=st.sampled_from(recipe_names()),
    seed=st.integers(0, 1 << 30),
    repeats=st.integers(0, 12),
    batch=st.integers(40, 200),
    compact_after=st.none() | st.integers(0, 2),
)
def test_order_repeats_delays_and_compaction_do_not_change_the_dataset(
    recipe: str, seed: int, repeats: int, batch: int, compact_after: int | None
) -> None:
    chance = random.Random(seed)
    events: list[Event] = story()
    events += chance.sample(events, repeats)
    chance.shuffle(events)
    with tempfile.TemporaryDirectory() as folder:
        lake = write_lake(Path(folder) / "lake", events, batch, compact_after)
        made = build(lake, Path(folder), recipe)
    assert made.dataset_id == expected(recipe).dataset_id
    assert made.counts == expected(recipe).counts
