"""What callers may send over HTTP. Shapes and types are checked here, ranges by the core, for gRPC too."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Float = Annotated[float, Field(allow_inf_nan=True)]


class _Body(BaseModel):
    """Strict: "1" is no number, and a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Body):
    """A part of a message's content; only text is taken."""

    type: Literal["text"]
    text: str


class FunctionCall(_Body):
    """What the model asked to be called."""

    name: str
    arguments: str = Field(description="JSON text.")


class ToolCall(_Body):
    """One call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Body):
    """One message; `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    name: None = None


class Function(_Body):
    """A function that the application can call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = Field(None, description="Taken, and no matter: arguments are as the model writes them.")


class Tool(_Body):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Body):
    """By its name."""

    name: str


class NamedTool(_Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Body):
    """A schema for the answer."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Body):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Body):
    """What a stream tells beside text."""

    include_usage: bool = False


class ChatCompletion(_Body):
    """A chat request in OpenAI's form; `model` names the persona, or `persona@policy` to pin a policy."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, description="Alternatives, 1 to 8.")
    temperature: _Float | None = None
    top_p: _Float | None = None
    top_k: int | None = None
    presence_penalty: _Float | None = None
    frequency_penalty: _Float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, description="0 to 5; needs logprobs.")
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="Taken, and no matter.")
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = None
    user: str | None = Field(None, description="The application's id of the person; only a keyed hash of it is kept.")
    store: bool | None = Field(None, description="Consent to storing the exchange; the tenant's default if absent.")
    train: bool | None = Field(None, description="Consent to learning from it; the tenant's default if absent.")
    conversation_id: str | None = Field(None, description="Groups turns; made up and returned if absent.")


class RankingEntry(_Body):
    """A response in a ranking."""

    feedback_token: str | None = None
    response_id: str | None = None
    rank: int = Field(description="1 is best; equal ranks are ties.")


class Annotation(_Body):
    """A remark on a part of the text, in Unicode code points."""

    start: int
    end: int
    tag: str = ""
    note: str = ""


class Outcome(_Body):
    """What became known later."""

    name: str
    value: bool | _Float | None = None


class Feedback(_Body):
    """One signal about a response: exactly one of thumb, rating, ranking, correction, annotation, outcome, implicit.

    Comment and tags may come alone. To take a signal back send it again with `retracted`.
    """

    feedback_token: str | None = None
    response_id: str | None = None
    conversation_id: str | None = Field(None, description="For outcomes of a whole conversation.")
    end_user_id: str | None = None
    revision: int = 0
    retracted: bool = False
    comment: str = ""
    tags: list[str] = []
    author: Literal["end_user", "reviewer", "application"] = "end_user"
    guideline_version: str = ""
    propensity: _Float | None = None
    client_feedback_id: str = ""
    thumb: Literal["up", "down"] | None = None
    rating: int | None = None
    ranking: list[RankingEntry] | None = None
    correction: str | None = None
    annotation: Annotation | None = None
    outcome: Outcome | None = None
    implicit: Literal["regenerated", "copied", "edited", "abandoned"] | None = None
