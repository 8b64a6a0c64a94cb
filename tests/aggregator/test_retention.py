"""How long a tenant's things are kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from attune.aggregator.privacy.retention import Limits, Retention
from attune.errors import NotFound
from attune.lake.dataset import list_datasets, open_dataset
from attune.lake.erased import erased_by_request, list_erased
from attune.settings import PrivacySettings, Settings, TenantSettings
from attune.v1 import event_pb2
from tests.aggregator.desk import Desk
from tests.aggregator.plant import Plant
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event

DAY_MS = 86_400_000


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    plant = Plant(tmp_path)
    yield Desk(plant)
    plant.close()


def aged(days: float, tenant: str = "default") -> event_pb2.EventHeader:
    return event_pb2.EventHeader(tenant=tenant, created_unix_ms=NOW_UNIX_MS - int(days * DAY_MS))


def keep(desk: Desk, days: dict[str, float | None], others: float | None, now_unix_ms: int = NOW_UNIX_MS) -> Retention:
    retention = Retention(
        Limits(days, others), desk.plant.lake, desk.plant.folder / "datasets", desk.index, lambda: now_unix_ms
    )
    retention.enforce()
    return retention


def test_each_tenants_rows_go_when_their_time_is_over(desk: Desk) -> None:
    plant = desk.plant
    for number, (tenant, days) in enumerate(
        [("default", 40), ("default", 20), ("acme", 20), ("acme", 5), ("zoo", 400)]
    ):
        plant.append(
            response_event(number, header=aged(days, tenant)), thumb_event(number, number, header=aged(days, tenant))
        )
    desk.update()
    keep(desk, {"acme": 10, "zoo": None}, 30)
    assert plant.ids("responses") == ["response-1", "response-3", "response-4"]
    assert plant.ids("feedback") == ["feedback-1", "feedback-3", "feedback-4"]
    with desk.index.reading() as connection:
        known = connection.execute("SELECT event_id FROM feedback ORDER BY event_id").fetchall()
    assert [name for (name,) in known] == ["feedback-1", "feedback-3", "feedback-4"]


def test_without_a_limit_everything_stays(desk: Desk) -> None:
    desk.plant.append(response_event(1, header=aged(4000)))
    desk.plant.ingest_all()
    keep(desk, {}, None)
    assert desk.plant.ids("responses") == ["response-1"]


def test_a_dataset_goes_with_its_oldest_example_and_policies_stay(desk: Desk) -> None:
    desk.plant.append(response_event(1), thumb_event(1, 1))
    desk.update()
    dataset = desk.plant.build()
    keep(desk, {}, 30, NOW_UNIX_MS + 29 * DAY_MS)
    assert len(list_datasets(desk.plant.folder / "datasets")) == 1
    keep(desk, {}, 30, NOW_UNIX_MS + 31 * DAY_MS)
    with pytest.raises(NotFound, match="erased"):
        open_dataset(dataset.folder)
    assert [file.name for file in dataset.folder.iterdir()] == ["erased.json"]
    erased = list_erased(desk.plant.folder / "datasets")[dataset.folder.name]
    assert erased.feedback_positions == dataset.manifest.feedback_positions
    assert not erased_by_request(desk.plant.folder / "datasets")


def test_what_comes_in_afterwards_is_looked_at_again_later(desk: Desk) -> None:
    now = [0.0]
    retention = Retention(
        Limits({}, 30), desk.plant.lake, desk.plant.folder / "datasets", desk.index, lambda: NOW_UNIX_MS, lambda: now[0]
    )
    retention.turn()
    desk.plant.append(response_event(1, header=aged(40)))
    desk.plant.ingest_all()
    retention.turn()
    assert desk.plant.ids("responses") == ["response-1"]
    now[0] = 3600.0
    desk.plant.lake.reload()
    retention.turn()
    assert desk.plant.ids("responses") == []


def test_a_tenant_that_says_nothing_has_everybodys_limit() -> None:
    settings = Settings(
        privacy=PrivacySettings(retention_days=30),
        tenants={"acme": TenantSettings(retention_days=7), "zoo": TenantSettings()},
    )
    limits = Limits.from_settings(settings)
    assert (limits.days, limits.others) == ({"acme": 7, "zoo": 30}, 30)
    assert limits.cutoff_unix_ms("acme", 7 * DAY_MS) == 0
