"""What became of feedback, asked of the aggregator: `Receipts` from threads, `AsyncReceipts` from asyncio."""

from dataclasses import dataclass
from typing import Literal, Self, TypedDict, Unpack

from attune.client.authorized import Authorized
from attune.client.calls import call, call_async
from attune.client.channel import Security, open_async_channel, open_channel
from attune.client.retry import PATIENT, Patience, Retry
from attune.errors import InvalidInput
from attune.v1 import dataset_pb2, dataset_pb2_grpc

AGGREGATOR_PORT = 50052

State = Literal["not_stored", "counts", "superseded", "retracted", "repeated"]

_STATES: "dict[dataset_pb2.Receipt.State.ValueType, State]" = {
    dataset_pb2.Receipt.STATE_NOT_STORED: "not_stored",
    dataset_pb2.Receipt.STATE_COUNTS: "counts",
    dataset_pb2.Receipt.STATE_SUPERSEDED: "superseded",
    dataset_pb2.Receipt.STATE_RETRACTED: "retracted",
    dataset_pb2.Receipt.STATE_REPEATED: "repeated",
}


class Subject(TypedDict, total=False):
    """Whose receipts: one of them."""

    feedback_id: str
    client_feedback_id: str
    response_id: str
    feedback_token: str


@dataclass(frozen=True)
class DatasetUse:
    """A dataset with an example that the feedback made; policies are checked against what is held out."""

    dataset_id: str
    recipe: str
    split: Literal["train", "heldout"]


@dataclass(frozen=True)
class PolicyUse:
    """A policy that was made with it; `passed` is none until the gate has spoken."""

    policy_id: str
    split: Literal["train", "heldout"]
    passed: bool | None


@dataclass(frozen=True)
class Note:
    """What turned out: a word to go by, and a sentence to read."""

    code: str
    sentence: str


@dataclass(frozen=True)
class LeftOut:
    """Why a recipe makes no example of it."""

    recipe: str
    reason: str
    sentence: str


@dataclass(frozen=True)
class Receipt:
    """What became of one feedback; docs/receipts.md."""

    feedback_id: str
    response_id: str
    kind: str
    name: str
    created_unix_ms: int
    state: State
    superseded_by: str
    datasets: tuple[DatasetUse, ...]
    policies: tuple[PolicyUse, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[Note, ...]

    @classmethod
    def not_stored(cls, feedback_id: str) -> Self:
        """Of feedback that the lake does not have."""
        return cls.of(dataset_pb2.Receipt(feedback_id=feedback_id, state=dataset_pb2.Receipt.STATE_NOT_STORED))

    @classmethod
    def of(cls, receipt: dataset_pb2.Receipt) -> Self:
        return cls(
            feedback_id=receipt.feedback_id,
            response_id=receipt.response_id,
            kind=receipt.kind,
            name=receipt.name,
            created_unix_ms=receipt.created_unix_ms,
            state=_STATES[receipt.state],
            superseded_by=receipt.superseded_by,
            datasets=tuple(DatasetUse(use.dataset_id, use.recipe, _split(use.split)) for use in receipt.datasets),
            policies=tuple(
                PolicyUse(use.policy_id, _split(use.split), use.passed if use.HasField("passed") else None)
                for use in receipt.policies
            ),
            left_out=tuple(LeftOut(one.recipe, one.reason, one.sentence) for one in receipt.left_out),
            notes=tuple(Note(note.code, note.sentence) for note in receipt.notes),
        )


class Receipts:
    """Asks the aggregator at an address, which is not the one that chats; safe to share between threads."""

    def __init__(
        self,
        address: str = f"127.0.0.1:{AGGREGATOR_PORT}",
        *,
        api_key: str = "",
        tls: Security = None,
        retry: Retry = PATIENT,
    ) -> None:
        self.address = address
        self._retry = retry
        self._channel = open_channel(address, tls)
        self._stub = Authorized(dataset_pb2_grpc.ReceiptServiceStub(self._channel), api_key)

    def ask(self, *, timeout_seconds: float = 60, **subject: Unpack[Subject]) -> list[Receipt]:
        """The newest first: `ask(feedback_id=...)`, or of one of the other subjects. Raises NotFound."""
        return _receipts(self.answer(timeout_seconds=timeout_seconds, **subject))

    def answer(self, *, timeout_seconds: float = 60, **subject: Unpack[Subject]) -> dataset_pb2.GetReceiptsResponse:
        """As it came over the wire, with what is known of the response."""
        patience = Patience(self._retry, timeout_seconds)
        answer: dataset_pb2.GetReceiptsResponse = call(
            self._stub.GetReceipts, _request(subject), patience, self.address
        )
        return answer

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncReceipts:
    """As `Receipts`, to be made and used inside one running event loop."""

    def __init__(
        self,
        address: str = f"127.0.0.1:{AGGREGATOR_PORT}",
        *,
        api_key: str = "",
        tls: Security = None,
        retry: Retry = PATIENT,
    ) -> None:
        self.address = address
        self._retry = retry
        self._channel = open_async_channel(address, tls)
        self._stub = Authorized(dataset_pb2_grpc.ReceiptServiceStub(self._channel), api_key)

    async def ask(self, *, timeout_seconds: float = 60, **subject: Unpack[Subject]) -> list[Receipt]:
        """The newest first. Raises NotFound."""
        patience = Patience(self._retry, timeout_seconds)
        return _receipts(await call_async(self._stub.GetReceipts, _request(subject), patience, self.address))

    async def close(self) -> None:
        await self._channel.close()


def aggregator_of(address: str) -> str:
    """Where the aggregator listens by default: on the same host as the server that chats."""
    return f"{address.rpartition(':')[0]}:{AGGREGATOR_PORT}"


def _request(subject: Subject) -> dataset_pb2.GetReceiptsRequest:
    if len(subject) != 1:
        raise InvalidInput(f"name one subject: {', '.join(Subject.__annotations__)}", field="subject")
    try:
        return dataset_pb2.GetReceiptsRequest(**subject)
    except (TypeError, ValueError, UnicodeError) as error:
        raise InvalidInput(f"the request does not fit: {error}") from None


def _receipts(answer: dataset_pb2.GetReceiptsResponse) -> list[Receipt]:
    return [Receipt.of(receipt) for receipt in answer.receipts]


def _split(name: str) -> Literal["train", "heldout"]:
    return "train" if name == "train" else "heldout"
