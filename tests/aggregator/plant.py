"""An event log and a lake in one folder, as the aggregator meets them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from google.protobuf.message import Message

from attune.aggregator.build import BuildRules, build_dataset
from attune.aggregator.ingest import Ingest
from attune.aggregator.recipe import load_recipe
from attune.eventlog import FEEDBACK, RESPONSES, SqliteLog
from attune.lake.audit import count_ids
from attune.lake.dataset import Dataset
from attune.lake.lake import Lake
from attune.lake.place import Place
from attune.lake.snapshot import open_snapshot
from attune.v1 import event_pb2
from tests.lake.events import NOW_UNIX_MS

SPLIT_KEY = b"k" * 32


class Plant:
    def __init__(self, folder: Path, log: SqliteLog | None = None, place: Place | None = None) -> None:
        self.folder = folder
        self.log = log or SqliteLog(folder / "spool", max_bytes=1 << 28, readers=("aggregator",), feedback_share=0.1)
        self.lake = Lake(place or folder / "lake")

    def another(self) -> "Plant":
        """A second aggregator on the same log and lake, with handles of its own."""
        return Plant(self.folder, self.log, self.lake.place)

    def append(self, *events: Message | bytes, topic: str | None = None) -> None:
        futures = []
        for event in events:
            payload = event if isinstance(event, bytes) else event.SerializeToString()
            to = topic or (FEEDBACK if isinstance(event, event_pb2.FeedbackEvent) else RESPONSES)
            futures.append(self.log.append(to, b"key", payload))
        for future in futures:
            future.result(10)

    def ingest(self, topic: str, batch_records: int = 1000, reached: Callable[[str], None] = lambda _: None) -> Ingest:
        return Ingest(self.log, self.lake, topic, batch_records=batch_records, reached=reached)

    def ingest_all(self, batch_records: int = 1000) -> None:
        for topic in (RESPONSES, FEEDBACK):
            ingest = self.ingest(topic, batch_records)
            while ingest.poll():
                pass

    def ids(self, table: str) -> list[str]:
        """The event ids in a table, as ingested, repeated ones repeated."""
        return sorted(count_ids(self.lake.place, table, "event_id").elements())

    def build(
        self,
        persona: str = "concierge",
        heldout_share: float = 0.2,
        window_days: float = 30,
        recipe: str = "thumbs",
        arguments: Mapping[str, float] = {},
    ) -> Dataset:
        self.lake.reload()
        with open_snapshot(self.lake) as snapshot:
            return build_dataset(
                snapshot,
                self.folder / "datasets",
                tenant="default",
                persona=persona,
                recipe=load_recipe(recipe),
                rules=BuildRules(1, window_days, heldout_share, arguments={recipe: arguments}),
                split_key=SPLIT_KEY,
                now_unix_ms=NOW_UNIX_MS,
            )

    def close(self) -> None:
        self.log.close()


def ids_of(events: Iterable[event_pb2.ResponseEvent | event_pb2.FeedbackEvent]) -> list[str]:
    return sorted(event.header.event_id for event in events)
