"""How tokens are drawn: a request's wishes over a persona's defaults, within limits."""

import math
from typing import Protocol

from attune.errors import InvalidInput
from attune.v1 import event_pb2

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 64
MAX_SEED = 2**63 - 1

# Logits are divided by the temperature: below this they overflow, and the engine would raise it to this by itself.
MIN_DRAWN_TEMPERATURE = 0.01


class Defaults(Protocol):
    """What applies where a request says nothing; a persona's SamplingDefaults is one."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def max_tokens(self) -> int: ...


class PersonaLimits(Protocol):
    """What a request may not go beyond; a persona's SamplingLimits is one."""

    @property
    def max_tokens(self) -> int | None: ...
    @property
    def min_temperature(self) -> float: ...
    @property
    def max_temperature(self) -> float: ...


def check_defaults(defaults: Defaults, limits: PersonaLimits) -> None:
    """Raises InvalidInput where a persona's defaults are outside its own limits."""
    if limits.min_temperature > limits.max_temperature:
        raise InvalidInput(
            f"limits.min_temperature is {limits.min_temperature:g}; limits.max_temperature is "
            f"{limits.max_temperature:g}, which is less"
        )
    if not limits.min_temperature <= defaults.temperature <= limits.max_temperature:
        raise InvalidInput(
            f"sampling.temperature is {defaults.temperature:g}; limits allow {limits.min_temperature:g} to "
            f"{limits.max_temperature:g}"
        )
    if limits.max_tokens is not None and defaults.max_tokens > limits.max_tokens:
        raise InvalidInput(
            f"sampling.max_tokens is {defaults.max_tokens}; limits.max_tokens allows {limits.max_tokens}"
        )


def resolve_sampling(
    requested: event_pb2.Sampling,
    defaults: Defaults,
    limits: PersonaLimits,
    *,
    prompt_tokens: int,
    model_tokens: int,
) -> event_pb2.Sampling:
    """The sampling that is used, each field but the seed set; raises InvalidInput with the value and the limit.

    A default max_tokens is cut to what fits behind the prompt; a requested one that does not fit is refused. A
    temperature above 0 and below 0.01 becomes 0.01.
    """
    room = model_tokens - prompt_tokens
    if room < 1:
        raise InvalidInput(
            f"prompt has {prompt_tokens} tokens; this model takes {model_tokens}"
            + (" with the answer" if room == 0 else ""),
            field="messages",
        )
    max_tokens = min(defaults.max_tokens, room)
    if requested.HasField("max_tokens"):
        max_tokens = requested.max_tokens
        _check_max_tokens(max_tokens, limits, prompt_tokens=prompt_tokens, model_tokens=model_tokens)
    temperature = _number(requested, "temperature", defaults.temperature, 0, 2)
    if not limits.min_temperature <= temperature <= limits.max_temperature:
        raise InvalidInput(
            f"temperature is {temperature:g}; this persona's limits are {limits.min_temperature:g} to "
            f"{limits.max_temperature:g}",
            field="sampling.temperature",
        )
    top_p = _number(requested, "top_p", defaults.top_p, 0, 1)
    if top_p == 0:
        raise InvalidInput("top_p is 0; it must be above 0 and at most 1", field="sampling.top_p")
    top_k = requested.top_k if requested.HasField("top_k") else defaults.top_k
    if top_k > 1000:
        raise InvalidInput(f"top_k is {top_k}; it must be 0 (all) or 1 to 1000", field="sampling.top_k")
    if requested.seed > MAX_SEED:
        raise InvalidInput(f"seed is {requested.seed}; it must be at most {MAX_SEED}", field="sampling.seed")
    if len(requested.stop) > MAX_STOP_STRINGS:
        raise InvalidInput(
            f"there are {len(requested.stop)} stop strings; at most {MAX_STOP_STRINGS} are taken", field="sampling.stop"
        )
    for index, text in enumerate(requested.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidInput(
                f"stop[{index}] has {len(text)} characters; it must have 1 to {MAX_STOP_CHARACTERS}",
                field=f"sampling.stop[{index}]",
            )
    return event_pb2.Sampling(
        temperature=max(temperature, MIN_DRAWN_TEMPERATURE) if temperature > 0 else 0.0,
        top_p=top_p,
        top_k=top_k,
        presence_penalty=_number(requested, "presence_penalty", defaults.presence_penalty, -2, 2),
        frequency_penalty=_number(requested, "frequency_penalty", defaults.frequency_penalty, -2, 2),
        max_tokens=max_tokens,
        seed=requested.seed if requested.HasField("seed") else None,
        stop=requested.stop,
    )


def _check_max_tokens(max_tokens: int, limits: PersonaLimits, *, prompt_tokens: int, model_tokens: int) -> None:
    if max_tokens < 1:
        raise InvalidInput("max_tokens is 0; it must be at least 1", field="sampling.max_tokens")
    if limits.max_tokens is not None and max_tokens > limits.max_tokens:
        raise InvalidInput(
            f"max_tokens is {max_tokens}; this persona's limit is {limits.max_tokens}", field="sampling.max_tokens"
        )
    if max_tokens > model_tokens - prompt_tokens:
        raise InvalidInput(
            f"prompt has {prompt_tokens} tokens and max_tokens is {max_tokens}; together this model takes "
            f"{model_tokens}",
            field="sampling.max_tokens",
        )


def _number(requested: event_pb2.Sampling, name: str, default: float, low: float, high: float) -> float:
    if not requested.HasField(name):  # type: ignore[arg-type]
        return default
    value: float = getattr(requested, name)
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidInput(f"{name} is {value:g}; it must be {low:g} to {high:g}", field=f"sampling.{name}")
    return value
