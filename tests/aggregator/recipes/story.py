"""Events from which every recipe makes examples and leaves some out, and a lake that holds them."""

from collections.abc import Sequence
from pathlib import Path

from attune.lake.lake import Lake
from attune.lake.rows import rows_of
from attune.lake.tables import FEEDBACK, RESPONSES
from attune.v1 import event_pb2
from tests.aggregator.recipes.conversation import DOWN, UP, answer, assistant, imported, opinion, ranking, tool, user
from tests.lake.events import NOW_UNIX_MS

Event = event_pb2.ResponseEvent | event_pb2.FeedbackEvent

ARGUMENTS = {"implicit.copied": 0.1, "implicit.regenerated": -0.2, "outcome.solved": 0.7, "outcome.stars": 0.3}


def story() -> list[Event]:
    return [*_answers(), *_thumbs(), *_rankings_and_ratings(), *_corrections(), *_outcomes()]


def _answers() -> list[Event]:
    events: list[Event] = [answer(n, f"Question {n % 4}?") for n in range(20)]
    events += [imported(30, "Which?"), imported(31, "Which?")]
    events += [answer(n, [user("A cab!"), assistant("..."), tool(said)]) for n, said in ((32, "error"), (33, "fine"))]
    for number in range(34, 38):
        turn = answer(number, f"Turn {number}", turn=number - 33)
        turn.conversation_id = "long"
        events.append(turn)
    events += [
        answer(40, finish_reason=event_pb2.FINISH_REASON_ABORTED),
        answer(41, consent=event_pb2.Consent(train=False)),
        answer(42, consent=event_pb2.Consent(store=False)),
        answer(43, persona="tutor"),
        answer(44, header=event_pb2.EventHeader(tenant="other")),
        answer(45, 'Grüße 🙂 \\ "quoted"\n', tools=[event_pb2.Tool(name="cab", parameters_json='{"a": [1]}')]),
    ]
    for number in (46, 47):  # one request, answered by two replicas
        again = answer(number, "Twice?", client_request_id="same")
        again.prompt_token_ids[:] = [7]
        events.append(again)
    same = answer(48, "Question 0?")
    same.text = "Done. 4"
    return [*events, same]


def _thumbs() -> list[Event]:
    events: list[Event] = [opinion(n, n, thumb=DOWN if n % 3 else UP) for n in range(16)]
    events += [opinion(20 + n, 40 + n, thumb=UP) for n in range(9)]
    events += [
        opinion(50, 1, thumb=UP, end_user="ann"),
        opinion(51, 2, thumb=UP, revision=1),
        opinion(52, 3, thumb=DOWN, revision=2, retracted=True),
        opinion(53, 3, thumb=DOWN, revision=1),
        opinion(54, 99, thumb=DOWN),
        opinion(55, 4, thumb=UP, author=event_pb2.AUTHOR_REVIEWER, guideline_version="g1"),
        opinion(56, 32, thumb=UP),
        opinion(57, 33, thumb=UP),
        opinion(58, 34, thumb=DOWN),
        opinion(59, 36, thumb=UP),
        opinion(60, 37, thumb=UP),
        opinion(61, 16, thumb=UP, header=event_pb2.EventHeader(created_unix_ms=NOW_UNIX_MS - 90 * 86_400_000)),
    ]
    nameless = opinion(62, 17, thumb=DOWN)
    nameless.persona = ""
    return [*events, nameless]


def _rankings_and_ratings() -> list[Event]:
    return [
        ranking(70, {0: 1, 4: 2, 8: 2}),
        ranking(71, {0: 2, 4: 1, 8: 3}, end_user="bob"),
        ranking(72, {1: 1, 2: 2}),
        ranking(73, {5: 1, 9: 2, 40: 3}),
        ranking(74, {30: 2, 31: 1}),
        ranking(75, {5: 1, 9: 2}, end_user="ann"),
        opinion(76, 6, rating=5),
        opinion(77, 7, rating=5),
        opinion(78, 7, rating=1, end_user="bob"),
        opinion(79, 10, rating=3),
        opinion(80, 30, rating=5),
    ]


def _corrections() -> list[Event]:
    return [
        opinion(90, 11, correction=event_pb2.Correction(text="Néin 🙂"), guideline_version="g2"),
        opinion(91, 12, correction=event_pb2.Correction(text="Done. 12")),
        opinion(92, 13, correction=event_pb2.Correction(text="First."), revision=0),
        opinion(93, 13, correction=event_pb2.Correction(text="Second."), revision=1),
    ]


def _outcomes() -> list[Event]:
    def outcome(id_number: int, about: int, name: str, **value: bool | float) -> event_pb2.FeedbackEvent:
        return opinion(id_number, about, outcome=event_pb2.Outcome(name=name, **value), name=name)  # type: ignore[arg-type]

    conversation = outcome(100, 34, "solved", flag=True)
    conversation.response_id = conversation.persona = ""
    conversation.conversation_id = "long"
    copied = {"implicit": event_pb2.IMPLICIT_SIGNAL_COPIED, "name": "copied"}
    regenerated = {"implicit": event_pb2.IMPLICIT_SIGNAL_REGENERATED, "name": "regenerated"}
    return [
        conversation,
        outcome(101, 1, "solved", flag=False),
        outcome(102, 1, "stars", number=0.3),
        outcome(103, 2, "stars", number=9.0),
        outcome(104, 3, "unheard_of", flag=True),
        opinion(105, 1, **copied),
        opinion(106, 2, **copied, end_user="ann"),
        opinion(107, 2, **regenerated),
        opinion(108, 5, **regenerated, retracted=True),
    ]


def write_lake(folder: Path, events: Sequence[Event], batch: int = 1000, compact_after: int | None = None) -> Lake:
    """The tables as ingest would have written these events, in their order, so many in a commit."""
    lake = Lake(folder)
    offsets = {RESPONSES: 0, FEEDBACK: 0}
    for number, start in enumerate(range(0, len(events), batch)):
        for name, table in ((RESPONSES, lake.responses), (FEEDBACK, lake.feedback)):
            payloads = [
                event.SerializeToString() for event in events[start : start + batch] if isinstance(event, _EVENTS[name])
            ]
            following = offsets[name] + len(payloads)
            rows = rows_of(name, payloads, "log", 0, range(offsets[name], following))
            assert not rows.poison
            table.append(rows.table, f"log/0/{name}", offsets[name], following)
            offsets[name] = following
            if number == compact_after:
                for _ in table.merge(1 << 24):
                    pass
    return lake


_EVENTS = {RESPONSES: event_pb2.ResponseEvent, FEEDBACK: event_pb2.FeedbackEvent}
