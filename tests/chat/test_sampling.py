import pytest

from attune.chat.sampling import resolve_sampling
from attune.errors import InvalidInput
from attune.personas.persona import SamplingDefaults, SamplingLimits
from attune.v1 import event_pb2

DEFAULTS = SamplingDefaults(temperature=0.7, top_p=0.9, top_k=40, max_tokens=100)


def resolve(
    prompt_tokens: int = 10, model_tokens: int = 1000, limits: SamplingLimits | None = None, **fields: object
) -> event_pb2.Sampling:
    return resolve_sampling(
        event_pb2.Sampling(**fields),  # type: ignore[arg-type]
        DEFAULTS,
        limits or SamplingLimits(),
        prompt_tokens=prompt_tokens,
        model_tokens=model_tokens,
    )


def test_what_a_request_leaves_out_is_the_personas_default() -> None:
    sampling = resolve()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.7, 0.9, 40, 100)
    assert not sampling.HasField("seed")


def test_what_a_request_says_wins_zero_included() -> None:
    sampling = resolve(temperature=0, top_k=0, seed=0, max_tokens=7, stop=["a"])
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0, 0, 7)
    assert sampling.HasField("seed")
    assert list(sampling.stop) == ["a"]


def test_a_default_max_tokens_is_cut_to_what_fits_and_a_requested_one_refused() -> None:
    assert resolve(prompt_tokens=990).max_tokens == 10
    with pytest.raises(
        InvalidInput, match="prompt has 990 tokens and max_tokens is 11; together this model takes 1000"
    ):
        resolve(prompt_tokens=990, max_tokens=11)


def test_a_prompt_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(InvalidInput, match="prompt has 9001 tokens; this model takes 8192"):
        resolve(prompt_tokens=9001, model_tokens=8192)
    with pytest.raises(InvalidInput, match="prompt has 1000 tokens; this model takes 1000 with the answer"):
        resolve(prompt_tokens=1000)


def test_a_temperature_too_small_to_divide_by_is_recorded_as_what_is_used() -> None:
    assert resolve(temperature=1e-9).temperature == 0.01


def test_a_persona_may_take_less_than_the_model_does() -> None:
    limits = SamplingLimits(max_tokens=100, min_temperature=0.2, max_temperature=1.2)
    assert resolve(limits=limits, max_tokens=100, temperature=1.2).max_tokens == 100
    for fields, said in (
        ({"max_tokens": 101}, "max_tokens is 101; this persona's limit is 100"),
        ({"temperature": 1.3}, "temperature is 1.3; this persona's limits are 0.2 to 1.2"),
        ({"temperature": 0}, "temperature is 0; this persona's limits are 0.2 to 1.2"),
    ):
        with pytest.raises(InvalidInput) as caught:
            resolve(limits=limits, **fields)
        assert caught.value.message == said
        assert caught.value.field == f"sampling.{next(iter(fields))}"
