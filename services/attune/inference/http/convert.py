"""OpenAI's JSON to our messages, and back. The one place that knows both."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attune.chat.words import AUTHORS, FINISH_REASONS, IMPLICIT_SIGNALS, ROLES, THUMBS
from attune.errors import InvalidInput
from attune.inference.http import bodies
from attune.v1 import chat_pb2, event_pb2, feedback_pb2

_CHOICES = {
    "none": event_pb2.ToolChoice.MODE_NONE,
    "auto": event_pb2.ToolChoice.MODE_AUTO,
    "required": event_pb2.ToolChoice.MODE_REQUIRED,
}
_FORMATS = {
    "text": event_pb2.ResponseFormat.KIND_TEXT,
    "json_object": event_pb2.ResponseFormat.KIND_JSON_OBJECT,
    "json_schema": event_pb2.ResponseFormat.KIND_JSON_SCHEMA,
}
_UINT32, _UINT64 = 2**32 - 1, 2**64 - 1


def chat_request(body: bodies.ChatCompletion, client_request_id: str) -> chat_pb2.ChatRequest:
    """Raises InvalidInput for what a message cannot hold; the ranges are the core's to check."""
    persona, _, policy_id = body.model.partition("@")
    request = chat_pb2.ChatRequest(
        persona=_text(persona, "model"),
        policy_id=_text(policy_id, "model"),
        messages=[_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)],
        sampling=_sampling(body),
        conversation_id=_text(body.conversation_id or "", "conversation_id"),
        end_user_id=_text(body.user or "", "user"),
        client_request_id=client_request_id,
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools or ())],
    )
    for key, value in (body.metadata or {}).items():
        request.metadata[_text(key, "metadata")] = _text(value, "metadata")
    if body.store is not None:
        request.consent.store = body.store
    if body.train is not None:
        request.consent.train = body.train
    if body.n is not None:
        request.alternatives = _integer(body.n, "n", 1, _UINT32)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidInput("top_logprobs needs logprobs to be true", field="top_logprobs")
    if body.logprobs:
        request.top_logprobs = _integer(body.top_logprobs or 0, "top_logprobs", 0, _UINT32)
    if isinstance(body.tool_choice, bodies.NamedTool):
        request.tool_choice.mode = event_pb2.ToolChoice.MODE_NAMED
        request.tool_choice.name = _text(body.tool_choice.function.name, "tool_choice")
    elif body.tool_choice is not None:
        request.tool_choice.mode = _CHOICES[body.tool_choice]
    if body.response_format is not None:
        request.response_format.CopyFrom(_format(body.response_format))
    return request


def completion(answer: chat_pb2.ChatResponse, model: str, created: int) -> dict[str, Any]:
    """A whole answer; attune's own fields stand beside OpenAI's."""
    first = answer.responses[0]
    return {
        "id": first.response_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_choice(index, response) for index, response in enumerate(answer.responses)],
        "usage": usage([response.usage for response in answer.responses]),
        "conversation_id": answer.conversation_id,
        "response_id": first.response_id,
        "policy_id": first.policy_id,
        "feedback_token": first.feedback_token,
        "replayed": answer.replayed,
    }


def usage(usages: Sequence[chat_pb2.Usage]) -> dict[str, int]:
    """The prompt is read once, however many alternatives there are."""
    prompt = usages[0].prompt_tokens if usages else 0
    output = sum(one.output_tokens for one in usages)
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


class Chunks:
    """A stream's JSON, chunk by chunk. All of a stream's chunks have one id, the first response's."""

    def __init__(self, model: str, created: int) -> None:
        self._model = json.dumps(model)
        self._created = created
        self._head = ""
        self._ended: dict[int, chat_pb2.Usage] = {}

    def text(self, chunk: chat_pb2.ChatChunk) -> str:
        """One `chat.completion.chunk` as JSON text."""
        if not self._head:
            self._head = (
                f'{{"id":{json.dumps(chunk.start.response_id)},"object":"chat.completion.chunk",'
                f'"created":{self._created},"model":{self._model},"choices":'
            )
        index = chunk.alternative
        plain = not (chunk.reasoning or chunk.tool_calls or chunk.logprobs)
        if plain and not chunk.HasField("start") and not chunk.HasField("end"):
            # By far the most; written by hand, for it is on the way of every token.
            return (
                f'{self._head}[{{"index":{index},"delta":{{"content":{json.dumps(chunk.text)}}},'
                '"logprobs":null,"finish_reason":null}]}'
            )
        delta: dict[str, Any] = {}
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if chunk.HasField("start"):
            delta["role"] = "assistant"
            choice |= {"response_id": chunk.start.response_id, "policy_id": chunk.start.policy_id}
            choice |= {"conversation_id": chunk.start.conversation_id, "replayed": chunk.start.replayed}
        if chunk.text or not chunk.HasField("end"):
            delta["content"] = chunk.text
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.tool_calls:
            delta["tool_calls"] = [_call_delta(call) for call in chunk.tool_calls]
        if chunk.logprobs:
            choice["logprobs"] = _logprobs(chunk.logprobs)
        if chunk.HasField("end"):
            choice["finish_reason"] = FINISH_REASONS.of[chunk.end.finish_reason]
            choice["feedback_token"] = chunk.end.feedback_token
            self._ended[index] = chunk.end.usage
        return f"{self._head}[{json.dumps(choice)}]}}"

    def usage(self) -> str:
        """The last chunk of a stream that was asked for its usage."""
        return f'{self._head}[],"usage":{json.dumps(usage(list(self._ended.values())))}}}'


def feedback_request(body: bodies.Feedback) -> feedback_pb2.SubmitFeedbackRequest:
    """Raises InvalidInput for several signals, and for what a message cannot hold."""
    signals = [
        name
        for name in ("thumb", "rating", "ranking", "correction", "annotation", "outcome", "implicit")
        if getattr(body, name) is not None
    ]
    if len(signals) > 1:
        raise InvalidInput(f"there are several signals: {', '.join(signals)}; send one at a time", field=signals[1])
    request = feedback_pb2.SubmitFeedbackRequest(
        end_user_id=_text(body.end_user_id or "", "end_user_id"),
        revision=_integer(body.revision, "revision", 0, _UINT32),
        retracted=body.retracted,
        comment=_text(body.comment, "comment"),
        tags=[_text(tag, "tags") for tag in body.tags],
        author=AUTHORS[body.author],
        guideline_version=_text(body.guideline_version, "guideline_version"),
        propensity=body.propensity,
        client_feedback_id=_text(body.client_feedback_id, "client_feedback_id"),
    )
    subjects = [n for n in ("feedback_token", "response_id", "conversation_id") if getattr(body, n) is not None]
    if len(subjects) > 1:
        raise InvalidInput(f"there are several subjects: {', '.join(subjects)}; name one", field=subjects[1])
    for name in subjects:
        setattr(request, name, _text(getattr(body, name), name))
    _set_signal(request, body)
    return request


def _set_signal(request: feedback_pb2.SubmitFeedbackRequest, body: bodies.Feedback) -> None:
    if body.thumb is not None:
        request.thumb = THUMBS[body.thumb]
    elif body.rating is not None:
        request.rating = _integer(body.rating, "rating", 0, _UINT32)
    elif body.implicit is not None:
        request.implicit = IMPLICIT_SIGNALS[body.implicit]
    elif body.correction is not None:
        request.correction.text = _text(body.correction, "correction")
        request.correction.SetInParent()
    elif body.annotation is not None:
        request.annotation.start = _integer(body.annotation.start, "annotation.start", 0, _UINT32)
        request.annotation.end = _integer(body.annotation.end, "annotation.end", 0, _UINT32)
        request.annotation.tag = _text(body.annotation.tag, "annotation.tag")
        request.annotation.note = _text(body.annotation.note, "annotation.note")
        request.annotation.SetInParent()
    elif body.outcome is not None:
        _set_outcome(request.outcome, body.outcome)
    elif body.ranking is not None:
        _set_ranking(request.ranking, body.ranking)
    elif body.comment or body.tags:
        request.remark.SetInParent()


def _set_outcome(outcome: event_pb2.Outcome, body: bodies.Outcome) -> None:
    outcome.name = _text(body.name, "outcome.name")
    if isinstance(body.value, bool):
        outcome.flag = body.value
    elif body.value is not None:
        outcome.number = body.value
    outcome.SetInParent()


def _set_ranking(ranking: feedback_pb2.RankingRequest, entries: Sequence[bodies.RankingEntry]) -> None:
    ranking.SetInParent()
    for index, entry in enumerate(entries):
        field = f"ranking[{index}]"
        if (entry.feedback_token is None) == (entry.response_id is None):
            raise InvalidInput(f"{field} must have a feedback_token or a response_id", field=field)
        added = ranking.entries.add(rank=_integer(entry.rank, f"{field}.rank", 0, _UINT32))
        if entry.feedback_token is not None:
            added.feedback_token = _text(entry.feedback_token, field)
        else:
            added.response_id = _text(entry.response_id or "", field)


def _message(message: bodies.Message, field: str) -> event_pb2.Message:
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    return event_pb2.Message(
        role=ROLES["system" if message.role == "developer" else message.role],
        content=_text(content or "", field),
        tool_calls=[
            event_pb2.ToolCall(
                id=_text(call.id, field),
                name=_text(call.function.name, field),
                arguments_json=_text(call.function.arguments, field),
            )
            for call in message.tool_calls or ()
        ],
        tool_call_id=_text(message.tool_call_id or "", field),
        reasoning=_text(message.reasoning_content or "", field),
    )


def _tool(tool: bodies.Tool, field: str) -> event_pb2.Tool:
    function = tool.function
    return event_pb2.Tool(
        name=_text(function.name, field),
        description=_text(function.description or "", field),
        parameters_json="" if function.parameters is None else _text(json.dumps(function.parameters), field),
    )


def _format(form: bodies.ResponseFormat) -> event_pb2.ResponseFormat:
    if (form.type == "json_schema") != (form.json_schema is not None):
        raise InvalidInput(
            "response_format must have a json_schema if its type is json_schema, and only then",
            field="response_format",
        )
    schema = "" if form.json_schema is None else json.dumps(form.json_schema.schema_)
    return event_pb2.ResponseFormat(kind=_FORMATS[form.type], schema_json=schema)


def _sampling(body: bodies.ChatCompletion) -> event_pb2.Sampling:
    most = body.max_tokens
    if body.max_completion_tokens is not None:
        if most is not None and most != body.max_completion_tokens:
            raise InvalidInput("max_tokens and max_completion_tokens differ", field="max_completion_tokens")
        most = body.max_completion_tokens
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    integers = {
        "top_k": (body.top_k, _UINT32),
        "max_tokens": (most, _UINT32),
        "seed": (body.seed, _UINT64),
    }
    return event_pb2.Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        stop=[_text(one, "stop") for one in stop],
        **{name: _integer(value, name, 0, most) for name, (value, most) in integers.items() if value is not None},
    )


def _choice(index: int, response: chat_pb2.Response) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": response.message.content or None, "refusal": None}
    if not response.message.tool_calls:
        message["content"] = response.message.content
    else:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in response.message.tool_calls
        ]
    if response.message.reasoning:
        message["reasoning_content"] = response.message.reasoning
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(response.logprobs) if response.logprobs else None,
        "finish_reason": FINISH_REASONS.of[response.finish_reason],
        "response_id": response.response_id,
        "policy_id": response.policy_id,
        "feedback_token": response.feedback_token,
    }


def _call_delta(call: chat_pb2.ToolCallDelta) -> dict[str, Any]:
    function: dict[str, str] = {"arguments": call.arguments_json}
    delta: dict[str, Any] = {"index": call.index, "function": function}
    if call.id:
        delta |= {"id": call.id, "type": "function"}
        function["name"] = call.name
    return delta


def _logprobs(logprobs: Sequence[chat_pb2.TokenLogprob]) -> dict[str, Any]:
    return {"content": [_logprob(one) for one in logprobs], "refusal": None}


def _logprob(one: chat_pb2.TokenLogprob) -> dict[str, Any]:
    told: dict[str, Any] = {"token": one.text, "logprob": one.logprob, "bytes": list(one.token)}
    told["top_logprobs"] = [{"token": top.text, "logprob": top.logprob, "bytes": list(top.token)} for top in one.top]
    return told


def _text(text: str, field: str) -> str:
    """JSON can hold half a surrogate pair; protobuf and the model cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{field} holds a lone surrogate, which is no character", field=field) from None
    return text


def _integer(value: int, field: str, low: int, high: int) -> int:
    if not low <= value <= high:
        raise InvalidInput(f"{field} is {value}; it must be {low} to {high}", field=field)
    return value


def client_request_id(headers: Mapping[str, str]) -> str:
    """The client's own id of a request."""
    return _text(headers.get("idempotency-key", ""), "idempotency-key")
