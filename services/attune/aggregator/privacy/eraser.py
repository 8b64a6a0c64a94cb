"""Forgetting a person, store by store. Killed anywhere and started again, it goes on where it was.

Every step may be done twice, and says in a sentence what it waits for. When all are done, every file of the data folder
is looked through for the person's pseudonym and the ids of what was theirs; what is found brings the steps round again.
Then the certificate is written.
"""

import datetime
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from attune import metrics
from attune.aggregator.build import Builder
from attune.aggregator.privacy.belongings import Belongings, find_belongings, is_in
from attune.aggregator.privacy.search import search, search_store
from attune.aggregator.receipt_index import ReceiptIndex
from attune.erasures import CERTIFICATE, FOUND, INFERENCE, REQUEST, STATE, Erasures, Request, digest_of
from attune.errors import AttuneError, DataLoss
from attune.eventlog import TOPICS, EventReader
from attune.lake.dataset import Dataset, list_datasets, remove_abandoned
from attune.lake.erased import erase_dataset, erased_by_request, finish_erasing
from attune.lake.erasing import delete_rows, purge
from attune.lake.lake import Lake
from attune.lake.left_out import erase_left_out
from attune.lake.place import ObjectStore
from attune.lake.snapshot import open_snapshot
from attune.registry.lineage import Lineage
from attune.registry.policies import Registry

logger = logging.getLogger(__name__)

# Another process's build writes more often.
_ABANDONED_SECONDS = 600
_DAY_MS = 86_400_000

REMAINS = (
    "backups, and copies that were exported or made outside the data folder",
    "weights of policies that were copied or merged elsewhere",
    "ids of responses, without any text, in the services' logs",
)


@dataclass
class State:
    """How far an erasure is."""

    done: dict[str, dict[str, int]] = field(default_factory=dict)
    barrier: dict[str, int] | None = None
    built: dict[str, str] = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)
    waiting: str = ""
    rounds: int = 1

    def add(self, step: str, counts: Mapping[str, int]) -> None:
        """A step that is done again adds to what it did before."""
        before = self.done.get(step, {})
        self.done[step] = {name: before.get(name, 0) + counts.get(name, 0) for name in {**before, **counts}}


class _Waits(Exception):
    """A step cannot be done yet; the message says what it waits for."""


@dataclass(eq=False)
class Eraser:
    """The aggregator's, for the thread that ingests and builds."""

    data: Path
    erasures: Erasures
    log: EventReader
    lake: Lake
    builder: Builder
    registry: Registry
    index: ReceiptIndex
    now_unix_ms: Callable[[], int]
    topics: Callable[[], Mapping[str, int | None]] = dict
    """After how many milliseconds nothing of a record is left in each of Kafka's topics; None: never."""
    reached: Callable[[str], None] = lambda _step: None
    """Told each step that is done; crash tests end the process there."""

    def turn(self) -> None:
        """As far as each erasure can go now. What fails is tried again by the next turn."""
        running = self.erasures.running()
        metrics.ERASURES_RUNNING.set(len(running))
        for request in running:
            if self.erasures.read(request.erasure_id, CERTIFICATE) is not None:
                self._forget_request(request)
                continue
            self._go_on(request)

    def _go_on(self, request: Request) -> None:
        state = State(**(self.erasures.read(request.erasure_id, STATE) or {}))
        steps: dict[str, Callable[[Request, State], Mapping[str, int]]] = {
            "event log": self._taken_in,
            "lake": self._lake,
            "dead letters": self._dead_letters,
            "inference": self._inference,
            "datasets": self._datasets,
            "receipts": self._receipts,
            "policies": self._policies,
            "training": self._training,
            "search": self._search,
            "certificate": self._certify,
        }
        state.waiting = ""
        for name, step in steps.items():
            if name in state.done:
                continue
            try:
                counts = step(request, state)
            except _Waits as waits:
                state.waiting = f"{name}: {waits}"
            except AttuneError as error:
                state.waiting = f"{name}: {error.message}"
                logger.error("an erasure is tried again", extra={"step": name, "reason": error.message})
            if state.waiting:
                self._save(request, state)
                return
            state.add(name, counts)
            self._save(request, state)
            self.reached(name)
        self._forget_request(request)

    def _taken_in(self, request: Request, state: State) -> Mapping[str, int]:
        """What was said before it was asked is in the lake or was dropped, also what others bring."""
        ends = {
            f"{self.log.log_id(topic)}/{topic}/{partition}": end
            for topic in TOPICS
            for partition, end in self.log.ends(topic).items()
        }
        if state.barrier is None:
            state.barrier = ends
        self.lake.reload()
        tables = dict(zip(TOPICS, (self.lake.responses, self.lake.feedback), strict=True))
        for source, end in state.barrier.items():
            # Of a log that was made anew nothing more will come.
            if source in ends and tables[source.split("/")[1]].next_offset(source) < end:
                raise _Waits("what was said before is still on its way to the lake")
        return {}

    def _lake(self, request: Request, state: State) -> Mapping[str, int]:
        """What is theirs is written down first, for afterwards nothing says any more that it was."""
        self.lake.reload()
        found = find_belongings(self.lake, request, self._found(request))
        self.erasures.write(request.erasure_id, FOUND, {**found.as_json(), "in_lake": True})
        self.reached("found")
        tables = ((self.lake.responses, found.response_events), (self.lake.feedback, found.feedback_ids))
        deleted = files = 0
        for table, events in tables:
            deleted += delete_rows(table.place, is_in("event_id", events))
            self.reached(f"{table.name} deleted")
        for table, events in tables:
            purged = purge(table.place, frozenset(events))
            files += purged.files
            if purged.waiting:
                raise _Waits(f"{purged.waiting} files of {table.name} are perhaps still being written")
        self._reload()
        return {"rows": deleted, "of others about them": found.of_others, "old files": files}

    def _dead_letters(self, request: Request, state: State) -> Mapping[str, int]:
        """Of what cannot be read, only their name and the ids of what was theirs tell whose it is."""
        found = self._found(request)
        names = [name.encode() for name in (request.person, *found.response_ids, *found.conversation_ids)]
        columns = ["log_id", "log_partition", "log_offset", "key", "payload"]
        deleted = 0
        for row in self.lake.dead_letter.read(columns).to_pylist():
            if any(name in row["payload"] or name in row["key"] for name in names):
                at = [pc.field(name) == row[name] for name in columns[:3]]
                deleted += delete_rows(self.lake.dead_letter.place, at[0] & at[1] & at[2])
        files = purge(self.lake.dead_letter.place).files if deleted else 0
        self._reload()
        return {"rows": deleted, "old files": files}

    def _inference(self, request: Request, state: State) -> Mapping[str, int]:
        counts = self.erasures.read(request.erasure_id, INFERENCE)
        if counts is None:
            raise _Waits("the inference service, which is to empty its event log and the answers under request ids")
        return {"records": counts["records"], "answers under request ids": counts["answers"]}

    def _datasets(self, request: Request, state: State) -> Mapping[str, int]:
        """New ones first, so that the trainer never takes an old one for the newest."""
        finish_erasing(self.builder.folder)
        remove_abandoned(self.builder.folder, _ABANDONED_SECONDS)
        found = self._found(request)
        listed = list_datasets(self.builder.folder, request.tenant)
        theirs = [dataset for dataset in listed if _holds(dataset, request, found)]
        names = {(one.manifest.persona, one.manifest.recipe.name) for one in theirs}
        if names:
            with open_snapshot(self.lake, self.builder.rules.threads, self.builder.rules.memory_mib) as snapshot:
                for persona, recipe in sorted(names):
                    made = self.builder.build(snapshot, request.tenant, persona, recipe, self.now_unix_ms())
                    state.built[f"{persona}/{recipe}"] = made.manifest.dataset_id
                    self.reached("built anew")
        for dataset in theirs:
            erase_dataset(dataset, by_request=True, now_unix_ms=self.now_unix_ms())
            self.reached("dataset erased")
        left_out = erase_left_out(self.builder.folder, found.feedback_ids)
        for spill in self.lake.spill.glob("*"):
            spill.unlink(missing_ok=True)
        return {"datasets": len(theirs), "built anew": len(names), "left-out notes": left_out}

    def _receipts(self, request: Request, state: State) -> Mapping[str, int]:
        found = self._found(request)
        return {"rows": self.index.erase(found.response_events, found.feedback_ids)}

    def _policies(self, request: Request, state: State) -> Mapping[str, int]:
        """The rollout service takes traffic from them, then the trainer deletes them."""
        gone = erased_by_request(self.builder.folder)
        tainted = Lineage(self.registry).made_with(gone)
        state.policies = sorted({*state.policies, *tainted})
        if tainted:
            raise _Waits(f"{', '.join(tainted)} to be retrained and withdrawn")
        return {}

    def _training(self, request: Request, state: State) -> Mapping[str, int]:
        """The trainer deletes its folder when a cycle ends, however it ends."""
        gone = erased_by_request(self.builder.folder)
        working = [folder for folder in (self.data / "trainer" / "work").glob("*/*") if folder.name in gone]
        if working:
            raise _Waits("the trainer, which still works with a dataset that they were in")
        return {}

    def _search(self, request: Request, state: State) -> Mapping[str, int]:
        found = self._found(request)
        names = {request.person, *found.response_ids}
        result = search(self.data, names, (self.erasures.folder, self.data / "logs"))
        if isinstance(self.lake.place, ObjectStore):
            result += search_store(self.lake.place, names)
        if result.hits:
            state.done = {name: counts for name, counts in state.done.items() if name == "event log"}
            state.rounds += 1
            self.erasures.remove(request.erasure_id, INFERENCE)
            raise _Waits(f"something was still found in {', '.join(sorted(result.hits)[:5])}; once more")
        return {"files looked through": result.files}

    def _certify(self, request: Request, state: State) -> Mapping[str, int]:
        now_unix_ms = self.now_unix_ms()
        topics = {name: _until(after_ms, now_unix_ms) for name, after_ms in self.topics().items()}
        content = {
            "erasure_id": request.erasure_id,
            "tenant": request.tenant,
            "person_sha256": digest_of(request.tenant, request.person),
            "requested_unix_ms": request.requested_unix_ms,
            "completed_unix_ms": now_unix_ms,
            "rounds": state.rounds,
            "removed": state.done,
            "datasets_built_anew": state.built,
            "policies_withdrawn": state.policies,
            "topics": topics,
            "remains": [*REMAINS, *self._elsewhere(topics)],
        }
        checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.erasures.write(request.erasure_id, CERTIFICATE, {**content, "sha256": checksum})
        logger.info("a person was erased", extra={"erasure_id": request.erasure_id})
        return {}

    def _elsewhere(self, topics: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        for name, topic in topics.items():
            if topic["nothing_left_after"] is None:
                yield f"records in Kafka's topic {name}, which keeps them for ever"
            else:
                yield f"records in Kafka's topic {name}, until {topic['nothing_left_after']}"
        if isinstance(self.lake.place, ObjectStore):
            yield f"earlier versions of objects in {self.lake.place}, if the bucket keeps any"

    def _forget_request(self, request: Request) -> None:
        """The request goes last: while it is there this is called again."""
        for name in (FOUND, STATE, INFERENCE, REQUEST):
            self.erasures.remove(request.erasure_id, name)

    def _found(self, request: Request) -> Belongings:
        content = self.erasures.read(request.erasure_id, FOUND)
        if content is None:
            return Belongings()
        return Belongings.from_json(content)

    def _save(self, request: Request, state: State) -> None:
        self.erasures.write(request.erasure_id, STATE, vars(state))

    def _reload(self) -> None:
        self.lake.reload()
        for table in self.lake.tables:
            table.sync()


def _until(after_ms: int | None, now_unix_ms: int) -> dict[str, Any]:
    """What was written to a topic by now is gone for certain at that time, UTC."""
    if after_ms is None:
        return {"kept_days": None, "nothing_left_after": None}
    end = datetime.datetime.fromtimestamp((now_unix_ms + after_ms) / 1000, datetime.UTC)
    return {"kept_days": round(after_ms / _DAY_MS, 3), "nothing_left_after": end.isoformat(timespec="seconds")}


def _holds(dataset: Dataset, request: Request, found: Belongings) -> bool:
    """Whether one of its examples is theirs; a dataset that cannot be read might hold one."""
    named = {"people": {request.person}, "feedback_ids": found.feedback_ids, "response_ids": found.response_ids}
    try:
        for table in dataset.files([*named, "conversation_id"]):
            for column, values in named.items():
                flat = pc.list_flatten(table[column].combine_chunks())
                if pc.any(pc.is_in(flat, pa.array(sorted(values), pa.string()))).as_py():
                    return True
            conversations = pa.array(sorted(found.conversation_ids), pa.string())
            if pc.any(pc.is_in(table["conversation_id"], conversations)).as_py():
                return True
    except (DataLoss, KeyError, pa.ArrowException):
        return True
    return False
