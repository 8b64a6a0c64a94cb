"""Small tables in, rows out: answers, what people say of them, and what a recipe makes of both."""

from collections.abc import Mapping
from typing import Any

from attune.v1 import event_pb2
from tests.aggregator.plant import Plant
from tests.lake.events import PLAIN, response_event, thumb_event

UP, DOWN = event_pb2.THUMB_UP, event_pb2.THUMB_DOWN
DAY_MS = 86_400_000


def user(content: str) -> event_pb2.Message:
    return event_pb2.Message(role=event_pb2.ROLE_USER, content=content)


def assistant(content: str) -> event_pb2.Message:
    return event_pb2.Message(role=event_pb2.ROLE_ASSISTANT, content=content)


def tool(content: str) -> event_pb2.Message:
    return event_pb2.Message(role=event_pb2.ROLE_TOOL, content=content, tool_call_id="call-1")


def said(message: Mapping[str, Any] | str) -> dict[str, Any]:
    """An assistant's message as it stands in a row."""
    content = message if isinstance(message, str) else message["content"]
    return {"role": "assistant", "content": content, **PLAIN}


def answer(number: int, prompt: str | list[event_pb2.Message] = "Hello?", **changes: Any) -> event_pb2.ResponseEvent:
    """The response r-<number> to this prompt; what it says differs by number unless told."""
    event = response_event(number, **changes)
    del event.messages[:]
    event.messages.extend([user(prompt)] if isinstance(prompt, str) else prompt)
    return event


def imported(number: int, prompt: str = "Hello?", **changes: Any) -> event_pb2.ResponseEvent:
    event = answer(number, prompt, source=event_pb2.SOURCE_IMPORTED, **changes)
    for field in ("prompt_token_ids", "output_token_ids", "output_logprobs", "policy_id", "logprobs_mode"):
        event.ClearField(field)
    return event


def opinion(number: int, about: int, **signal: Any) -> event_pb2.FeedbackEvent:
    """The feedback feedback-<number> on r-<about>, of any kind."""
    event = thumb_event(number, about)
    event.ClearField("signal")
    event.MergeFrom(event_pb2.FeedbackEvent(**signal))
    return event


def ranking(number: int, ranks: Mapping[int, int], **changes: Any) -> event_pb2.FeedbackEvent:
    """One of answers by their numbers; 1 is best."""
    entries = [event_pb2.Ranking.Entry(response_id=f"r-{answer}", rank=rank) for answer, rank in ranks.items()]
    name = ",".join(sorted(f"r-{answer}" for answer in ranks))
    return opinion(number, min(ranks), ranking=event_pb2.Ranking(entries=entries), name=name, **changes)


class Table:
    """A recipe, run on what was put in."""

    def __init__(self, plant: Plant, recipe: str) -> None:
        self._plant = plant
        self._recipe = recipe

    def put(self, *events: event_pb2.ResponseEvent | event_pb2.FeedbackEvent) -> None:
        self._plant.append(*events)

    def rows(self, **how: Any) -> list[dict[str, Any]]:
        """In the order of what they were made of."""
        self._plant.ingest_all()
        found = self._plant.build(recipe=self._recipe, **how).table().to_pylist()
        return sorted(found, key=lambda row: (row["response_ids"], row["feedback_ids"]))

    def left_out(self, **how: Any) -> dict[str, int]:
        self._plant.ingest_all()
        return dict(self._plant.build(recipe=self._recipe, **how).manifest.counts["left_out"])
