"""A data folder with two people's things in every store, and all that forgets one of them."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attune.aggregator.build import Builder, BuildRules
from attune.aggregator.ingest import Ingest
from attune.aggregator.privacy.eraser import Eraser
from attune.aggregator.privacy.guard import Guard
from attune.erasures import CERTIFICATE, Erasures
from attune.eventlog import FEEDBACK, RESPONSES, TOPICS, Record, SqliteLog
from attune.eventlog.refused import RefusedRecords
from attune.ids import hash_end_user
from attune.inference.erasing import Forgetting
from attune.inference.idempotency import Idempotency
from attune.lake.dataset import Dataset
from attune.lake.erased import erased_by_request
from attune.lake.place import Place
from attune.lake.snapshot import open_snapshot
from attune.registry.lineage import Lineage
from attune.registry.policies import Probe
from attune.registry.rollouts import RolloutEntry, RolloutLog
from attune.registry.withdrawal import withdraw_idle
from attune.v1 import chat_pb2, event_pb2
from tests.aggregator.desk import Desk
from tests.aggregator.plant import SPLIT_KEY, Plant
from tests.lake.events import NOW_UNIX_MS, response_event, thumb_event
from tests.registry.adapters import manifest_of, verdict_of, write_adapter

JANE, JOHN = (hash_end_user("default", name, b"k" * 32) for name in ("jane", "john"))
WORDS = ("Quokkaflower", "zanzibarrel")
TOKENS = (770_001, 770_002, 770_003)
ASKED_UNIX_MS = NOW_UNIX_MS + 1_000_000


class Ring:
    """Everything that keeps something of people, in one folder."""

    def __init__(
        self,
        folder: Path,
        reached: Callable[[str], None] = lambda _step: None,
        *,
        batch_records: int = 7,
        place: Place | None = None,
    ) -> None:
        self.folder = folder
        self.batch_records = batch_records
        # A second reader, which has read nothing yet, keeps all records in the event log.
        log = SqliteLog(folder / "spool", max_bytes=1 << 28, readers=("aggregator", "slow"), feedback_share=0.1)
        self.plant = Plant(folder, log, place)
        self.desk = Desk(self.plant)
        self.idempotency = Idempotency(folder / "idempotency.sqlite", keep_hours=24, most_answers=1000)
        self.erasures = Erasures(folder / "erasures")
        self.rollouts = RolloutLog(folder / "registry")
        self.builder = Builder(folder / "datasets", BuildRules(1, 3650, 0.2), SPLIT_KEY)
        self.guard = Guard(None, self.erasures)
        self.eraser = Eraser(
            folder,
            self.erasures,
            log,
            self.plant.lake,
            self.builder,
            self.desk.registry,
            self.desk.index,
            now_unix_ms=lambda: time.time_ns() // 1_000_000,
            reached=reached,
        )
        self.forgetting = Forgetting(self.erasures, log, self.idempotency, RefusedRecords(folder / "spool"))

    def close(self) -> None:
        self.idempotency.close()
        self.plant.close()

    def ingest(self) -> None:
        self.guard.refresh()
        for topic in TOPICS:
            ingest = Ingest(self.plant.log, self.plant.lake, topic, batch_records=self.batch_records, guard=self.guard)
            while ingest.poll():
                pass

    def build(self) -> Dataset:
        self.plant.lake.reload()
        with open_snapshot(self.plant.lake) as snapshot:
            return self.builder.build(snapshot, "default", "concierge", "thumbs", NOW_UNIX_MS + 2_000_000)

    async def fill(self, people: int = 20) -> None:
        """Jane is the first of the people, John the second; each has a response and a thumb, and is in a dataset."""
        for number in range(people):
            who = {0: JANE, 1: JOHN}.get(number, f"user-{number}")
            response_id = f"r-{who}"
            said = (
                {"text": WORDS[0], "output_token_ids": TOKENS, "output_logprobs": (-1, -1, -1)} if number == 0 else {}
            )
            answer = response_event(number, response_id=response_id, end_user=who, **said)
            comment = WORDS[1] if number == 0 else ""
            thumb = thumb_event(number, number, response_id=response_id, end_user=who, comment=comment)
            self.plant.append(answer, thumb)
            await self.keep(who, response_id, answer.text)
        # What others did with what was Jane's.
        note = event_pb2.Annotation(start=0, end=4, note=f"reviewed {WORDS[0]}")
        review = {"author": event_pb2.AUTHOR_REVIEWER, "end_user": "reviewer", "response_id": f"r-{JANE}"}
        self.plant.append(thumb_event(900_100, 0, annotation=note, **review))
        nobodys = response_event(900_101, text=WORDS[0], conversation_id="c-0")
        nobodys.end_user = ""
        self.plant.append(nobodys)
        goes_on = response_event(900_102, conversation_id="c-0", end_user="colleague")
        first = response_event(0).messages
        del goes_on.messages[:]
        goes_on.messages.extend([*first, event_pb2.Message(role=event_pb2.ROLE_ASSISTANT, content=WORDS[0])])
        self.plant.append(goes_on)
        self.plant.append(b"\xff\xff" + JANE.encode() + WORDS[0].encode(), topic=FEEDBACK)
        for number, who in enumerate((JANE, JOHN)):
            event = response_event(400 + number, end_user=who, text=WORDS[0] if who == JANE else "fine")
            record = Record(RESPONSES, 0, 400 + number, b"key", event.SerializeToString())
            RefusedRecords(self.folder / "spool").add("log", record, "Kafka refused the record")
        self.ingest()
        dataset = self.build()
        self.desk.update()
        self.publish(dataset.manifest.dataset_id)
        work = self.folder / "trainer" / "work" / "default.concierge"
        work.mkdir(parents=True)

    async def keep(self, who: str, response_id: str, text: str) -> None:
        name = "default", "chat", f"request-of-{response_id}"
        kept = chat_pb2.ChatResponse(
            responses=[chat_pb2.Response(response_id=response_id, message=event_pb2.Message(content=text))]
        )
        self.idempotency.begin(name, b"digest")
        await self.idempotency.finish(name, kept.SerializeToString(), durable=True)
        self.idempotency.release(name)

    def publish(self, dataset_id: str, parent: str = "") -> str:
        """A policy that shows Jane's tokens, as its probe, and serves."""
        registry, signer = self.desk.registry, self.desk.signer
        policy_id = registry.claim("default", "concierge")
        probe = Probe((1, 2), TOKENS, (-1.0, -1.0, -1.0), (-2.0, -2.0, -2.0))
        manifest = replace(manifest_of(policy_id), dataset_ids=(dataset_id,), parent_policy_id=parent, probe=(probe,))
        registry.publish(manifest, write_adapter(self.folder / "work" / policy_id), signer)
        registry.write_verdict(verdict_of(policy_id), signer)
        return policy_id

    def serve(self, policy_id: str) -> None:
        entries = self.rollouts.history("default", "concierge")
        self.rollouts.append(
            RolloutEntry(len(entries) + 1, "default", "concierge", ((policy_id, 1.0),), "gate", "", NOW_UNIX_MS)
        )

    def withdraw(self) -> list[str]:
        """What the trainer does between its cycles."""
        gone = erased_by_request(self.folder / "datasets")
        return withdraw_idle(self.desk.registry, self.rollouts, Lineage(self.desk.registry).made_with(gone))

    async def turn(self) -> None:
        """What the services do beside one another, once."""
        self.ingest()
        self.eraser.turn()
        await self.forgetting.turn()
        self.withdraw()

    async def forget(self, person: str = JANE, turns: int = 10) -> str:
        erasure_id = self.erasures.ask("default", person, ASKED_UNIX_MS).erasure_id
        for _ in range(turns):
            await self.turn()
            if self.erasures.read(erasure_id, CERTIFICATE) is not None:
                break
            await asyncio.sleep(0)
        return erasure_id

    def ids(self) -> dict[str, list[str]]:
        return {RESPONSES: self.plant.ids("responses"), FEEDBACK: self.plant.ids("feedback")}
