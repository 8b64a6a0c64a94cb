import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune.access import Caller, KeyLimits
from attune.errors import ResourceExhausted
from attune.inference import quota
from attune.inference.quota import Charge, Quotas


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def caller(key_id: str = "k", **limits: int) -> Caller:
    return Caller("acme", key_id, frozenset(), KeyLimits(**limits))


def test_requests_a_minute_are_counted_and_come_back() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    for _ in range(2):
        quotas.charge(caller(requests_per_minute=2), 5)
    with pytest.raises(ResourceExhausted, match="requests_per_minute of 2 is used up") as refusal:
        quotas.charge(caller(requests_per_minute=2), 5)
    assert refusal.value.retry_after_seconds == pytest.approx(30)
    assert refusal.value.field == "requests_per_minute"
    clock.seconds = 30
    quotas.charge(caller(requests_per_minute=2), 5)


def test_who_is_over_the_requests_is_told_before_any_work() -> None:
    quotas = Quotas(Clock())
    quotas.check(caller(requests_per_minute=1))
    quotas.check(caller(requests_per_minute=1))
    quotas.charge(caller(requests_per_minute=1), 5)
    with pytest.raises(ResourceExhausted, match="requests_per_minute of 1 is used up"):
        quotas.check(caller(requests_per_minute=1))


def test_tokens_that_were_not_used_are_given_back_once() -> None:
    quotas = Quotas(Clock())
    charge = quotas.charge(caller(tokens_per_minute=100), 90)
    with pytest.raises(ResourceExhausted, match="tokens_per_minute"):
        quotas.charge(caller(tokens_per_minute=100), 90)
    charge.settle(60)
    charge.settle(0)
    with pytest.raises(ResourceExhausted):
        quotas.charge(caller(tokens_per_minute=100), 41)
    quotas.charge(caller(tokens_per_minute=100), 40)


def test_a_refusal_charges_nothing() -> None:
    quotas = Quotas(Clock())
    limits = caller(tokens_per_minute=1000, tokens_per_day=50)
    quotas.charge(limits, 50)
    for _ in range(30):
        with pytest.raises(ResourceExhausted, match="tokens_per_day"):
            quotas.charge(limits, 50)
    (bucket,) = (bucket for name, bucket in quotas._uses["k"].tokens if name == "tokens_per_minute")
    assert bucket.level == 950


def test_a_call_larger_than_the_bucket_waits_until_that_is_full_and_overdraws_it() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    quotas.charge(caller(tokens_per_minute=60), 300)
    with pytest.raises(ResourceExhausted) as refusal:
        quotas.charge(caller(tokens_per_minute=60), 1)
    assert refusal.value.retry_after_seconds == pytest.approx(241)


def test_a_large_limit_is_said_in_full() -> None:
    quotas = Quotas(Clock())
    quotas.charge(caller(tokens_per_day=25_000_000), 25_000_000)
    with pytest.raises(ResourceExhausted, match="tokens_per_day of 25000000 is used up"):
        quotas.charge(caller(tokens_per_day=25_000_000), 1)


def test_calls_at_once_are_bounded_by_key() -> None:
    quotas = Quotas(Clock())
    charge = quotas.charge(caller(concurrent_requests=1), 5)
    for attempt in (quotas.check, lambda caller: quotas.charge(caller, 5)):
        with pytest.raises(ResourceExhausted, match="1 calls with this key are running"):
            attempt(caller(concurrent_requests=1))
    charge.settle(5)
    quotas.charge(caller(concurrent_requests=1), 5)


def test_keys_are_counted_apart() -> None:
    quotas = Quotas(Clock())
    quotas.charge(caller("one", requests_per_minute=1), 5)
    quotas.charge(caller("two", requests_per_minute=1), 5)


def test_a_key_without_limits_is_not_counted() -> None:
    quotas = Quotas(Clock())
    for _ in range(100):
        quotas.check(Caller("acme", "k"))
        quotas.charge(Caller("acme", "k"), 10**9).settle(0)
    assert not quotas._uses


def test_of_too_many_keys_the_one_that_was_used_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_MOST_KEYS", 2)
    quotas = Quotas(Clock())
    for key_id in ("one", "two", "one", "three"):
        quotas.charge(caller(key_id, requests_per_minute=9), 5)
    assert set(quotas._uses) == {"one", "three"}


pauses_and_tokens = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 150), st.floats(0, 1)), max_size=60)


@given(pauses_and_tokens)
def test_in_no_stretch_of_time_is_more_used_than_one_bucket_and_what_flows_in(
    calls: list[tuple[float, int, float]],
) -> None:
    """Calls of up to the bucket's size and more, each settled before the next one, with part of what it asked for."""
    clock = Clock()
    quotas = Quotas(clock)
    used: list[tuple[float, float]] = []
    for pause, tokens, share in calls:
        clock.seconds += pause
        try:
            charge: Charge = quotas.charge(caller(tokens_per_minute=100), tokens)
        except ResourceExhausted as refusal:
            # Whoever comes back when told to gets in.
            clock.seconds += refusal.retry_after_seconds or 0
            charge = quotas.charge(caller(tokens_per_minute=100), tokens)
        charge.settle(int(tokens * share))
        used.append((clock.seconds, int(tokens * share)))
    for first, (begun, _) in enumerate(used):
        for last in range(first, len(used)):
            ended = used[last][0]
            total = sum(tokens for _, tokens in used[first : last + 1])
            # The last call may overdraw by what does not fit into a bucket: 50 of its 150.
            assert total <= 100 + (ended - begun) * 100 / 60 + 50 + 1e-6
