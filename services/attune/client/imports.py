"""Files of answers that attune did not generate, as records to import. One JSON object a line.

Each format is a function from a line's object to a `Record`; it raises InvalidInput for what it cannot read.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attune.chat.words import ROLES
from attune.client.said import Said, ranking, read_said, short_forms
from attune.errors import InvalidInput
from attune.v1 import event_pb2, feedback_pb2

# What was served elsewhere is imported here.
_SOURCES = {
    "imported": event_pb2.SOURCE_IMPORTED,
    "served": event_pb2.SOURCE_IMPORTED,
    "teacher": event_pb2.SOURCE_TEACHER,
}
_PEOPLE = ("end_user_id", "annotator_id", "annotator", "worker_id", "user_id", "user")
_TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Record:
    """Answers to one prompt, and what was said of them."""

    request: feedback_pb2.ImportResponseRequest
    said: Sequence[Said] = ()

    def feedback(self, response_ids: Sequence[str]) -> Iterator[feedback_pb2.SubmitFeedbackRequest]:
        """To be sent once the answers have these ids."""
        nobody = f"import/{self.request.conversation_id or _digest_of(self.request.messages)}"
        return (said.about(self.request.import_id, response_ids, nobody) for said in self.said)


@dataclass(frozen=True)
class Line:
    """A line of a file: a record, or why it is none."""

    number: int
    record: Record | None
    reason: str = ""


def read_lines(lines: Iterator[bytes], form: str, *, name: str, persona: str) -> Iterator[Line]:
    """Every line, in order; import ids are made of the file's name and the line's content."""
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError):
            yield Line(number, None, "not JSON")
            continue
        try:
            if not isinstance(row, dict):
                raise InvalidInput("not a JSON object")
            record = FORMATS[form](row)
        except InvalidInput as error:
            yield Line(number, None, error.message)
        except KeyError as missing:
            yield Line(number, None, f"not of the format {form}: it has no {missing.args[0]}")
        except (ValueError, TypeError, AttributeError, IndexError, OverflowError):
            yield Line(number, None, f"not of the format {form}: something in it is of another kind")
        else:
            record.request.import_id = record.request.import_id or _import_id(name, raw)
            record.request.persona = record.request.persona or persona
            yield Line(number, record)


def _attune(row: Mapping[str, Any]) -> Record:
    """`{"messages": [...], "answers": [{"content": ..., "rating": 4, "thumb": "up", "rank": 1}]}`, and more."""
    answers, end_user_id = row["answers"], row.get("end_user_id", "")
    source = row.get("source", "imported")
    if source not in _SOURCES:
        raise InvalidInput(f"source must be one of {', '.join(_SOURCES)}")
    request = feedback_pb2.ImportResponseRequest(
        import_id=row.get("import_id", ""),
        persona=row.get("persona", ""),
        messages=_messages(row["messages"]),
        tools=[_tool(tool) for tool in row.get("tools", ())],
        answers=[_message({**answer, "role": "assistant"}) for answer in answers],
        source=_SOURCES[source],
        conversation_id=row.get("conversation_id", ""),
        end_user_id=end_user_id,
        consent=event_pb2.Consent(**row.get("consent", {})),
        metadata=row.get("metadata", {}),
        created_unix_ms=row.get("created_unix_ms", 0),
    )
    said = [read_said(one, len(answers)) for one in row.get("feedback", ())]
    return Record(request, [*short_forms(answers, end_user_id), *said])


def _hh(row: Mapping[str, Any]) -> Record:
    """`{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}`: two dialogues that share a beginning."""
    chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
    if chosen[:-1] != rejected[:-1]:
        raise InvalidInput("chosen and rejected answer different prompts")
    if chosen[-1]["content"].strip() == rejected[-1]["content"].strip():
        raise InvalidInput("chosen and rejected are the same")
    for turn in (chosen[-1], rejected[-1]):
        if turn["role"] != "assistant" or not turn["content"].strip():
            raise InvalidInput("a dialogue does not end with an answer")
    request = feedback_pb2.ImportResponseRequest(
        messages=_messages(chosen[:-1]), answers=[_message(chosen[-1]), _message(rejected[-1])]
    )
    return Record(request, [ranking((1, 2), _person(row))])


def _ultrafeedback(row: Mapping[str, Any]) -> Record:
    """`{"instruction": ..., "completions": [{"response": ..., "overall_score": 7.5}]}`."""
    completions = row["completions"]
    scores = [float(one["overall_score"]) for one in completions]
    best_first = sorted(set(scores), reverse=True)
    request = feedback_pb2.ImportResponseRequest(
        messages=_messages([{"role": "user", "content": row["instruction"]}]),
        answers=[_message({"role": "assistant", "content": one["response"]}) for one in completions],
    )
    ranks = [best_first.index(score) + 1 for score in scores]
    return Record(request, [ranking(ranks, _person(row))] if len(ranks) > 1 else ())


def _openai_stored(row: Mapping[str, Any]) -> Record:
    """A stored chat completion: the request's messages, and the completion's choices."""
    messages = row.get("messages") or row["request"]["messages"]
    choices = row.get("choices") or row["response"]["choices"]
    request = feedback_pb2.ImportResponseRequest(
        import_id=row.get("id", ""),
        messages=_messages(messages),
        answers=[_message(choice["message"]) for choice in choices],
        metadata=row.get("metadata") or {},
    )
    return Record(request)


FORMATS: dict[str, Callable[[Mapping[str, Any]], Record]] = {
    "attune": _attune,
    "hh": _hh,
    "ultrafeedback": _ultrafeedback,
    "openai-stored": _openai_stored,
}


def _turns(dialogue: str) -> list[dict[str, str]]:
    """A blank line and `Human: ` or `Assistant: ` begin a turn, whoever had the one before; the rest is its text."""
    parts = _TURN.split("\n\n" + dialogue.lstrip())[1:]
    turns = [
        {"role": "user" if side == "Human" else "assistant", "content": said.removeprefix(" ")}
        for side, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if len(turns) < 2:
        raise InvalidInput("no dialogue of Human and Assistant")
    return turns


def _messages(rows: Sequence[Mapping[str, Any]]) -> list[event_pb2.Message]:
    return [_message(row) for row in rows]


def _message(row: Mapping[str, Any]) -> event_pb2.Message:
    role = {"developer": "system"}.get(row["role"], row["role"])
    if role not in ROLES:
        raise InvalidInput("a message has an unknown role")
    content = row.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    try:
        content.encode()
    except UnicodeEncodeError:
        raise InvalidInput("a message holds half a character") from None
    calls = [
        event_pb2.ToolCall(id=call["id"], name=call["function"]["name"], arguments_json=call["function"]["arguments"])
        for call in row.get("tool_calls") or ()
    ]
    return event_pb2.Message(
        role=ROLES[role],
        content=content,
        tool_calls=calls,
        tool_call_id=row.get("tool_call_id") or "",
        reasoning=row.get("reasoning_content") or "",
    )


def _tool(row: Mapping[str, Any]) -> event_pb2.Tool:
    parameters = row.get("parameters")
    return event_pb2.Tool(
        name=row["name"],
        description=row.get("description", ""),
        parameters_json="" if parameters is None else json.dumps(parameters),
    )


def _person(row: Mapping[str, Any]) -> str:
    """Who judged, where a line says it; files of others have no one name for it."""
    named = next((row[name] for name in _PEOPLE if row.get(name) not in (None, "")), "")
    if not isinstance(named, str | int):
        raise InvalidInput("who judged is neither text nor a number")
    return str(named)


def _digest_of(messages: Iterable[event_pb2.Message]) -> str:
    """Of a prompt: all that is said of answers to it stays together when people are held out."""
    content = hashlib.sha256()
    for message in messages:
        one = message.SerializeToString(deterministic=True)
        content.update(len(one).to_bytes(8, "big") + one)
    return content.hexdigest()[:32]


def _import_id(name: str, raw: bytes) -> str:
    digest = hashlib.sha256(raw.strip()).hexdigest()[:32]
    return f"{name[:80]}-{digest}"
