import pytest

from attune.access import Caller, KeyLimits
from attune.errors import ResourceExhausted, Unavailable
from attune.inference.admission import Admission
from attune.inference.quota import Quotas


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_tenant_alone_may_have_every_place() -> None:
    admission = Admission(4, 1000)
    tickets = [admission.enter("one", 10) for _ in range(4)]
    with pytest.raises(ResourceExhausted, match="4 calls are running; this server takes 4") as refusal:
        admission.enter("one", 10)
    assert refusal.value.retry_after_seconds == 1
    for ticket in tickets:
        ticket.leave()
        ticket.leave()
    assert admission.running == 0
    assert await admission.wait_idle(0.1)


async def test_a_second_tenant_gets_its_part_as_places_come_free() -> None:
    clock = Clock()
    admission = Admission(4, 1000, clock)
    tickets = [admission.enter("one", 1) for _ in range(4)]
    with pytest.raises(ResourceExhausted):
        admission.enter("two", 1)
    tickets.pop().leave()
    with pytest.raises(ResourceExhausted, match="your part is 2"):
        admission.enter("one", 1)
    admission.enter("two", 1)
    tickets.pop().leave()
    admission.enter("two", 1)
    with pytest.raises(ResourceExhausted):
        admission.enter("one", 1)


async def test_a_claim_is_forgotten_when_nobody_comes_back() -> None:
    clock = Clock()
    admission = Admission(2, 1000, clock)
    first, _second = admission.enter("one", 1), admission.enter("one", 1)
    with pytest.raises(ResourceExhausted):
        admission.enter("two", 1)
    first.leave()
    clock.seconds = 10
    admission.enter("one", 1)


async def test_tokens_in_flight_are_bounded_and_one_large_call_still_gets_in() -> None:
    admission = Admission(10, 100)
    large = admission.enter("one", 500)
    with pytest.raises(ResourceExhausted, match="this server takes 100 at once"):
        admission.enter("one", 1)
    large.leave()
    admission.enter("one", 60)
    with pytest.raises(ResourceExhausted):
        admission.enter("one", 60)


async def test_a_shut_door_says_why_until_it_is_opened() -> None:
    admission = Admission(1, 10)
    admission.shut("stopping", Unavailable("the server is stopping", retry_after_seconds=5))
    with pytest.raises(Unavailable, match="stopping"):
        admission.check("one")
    admission.open("stopping")
    admission.enter("one", 1)


def caller(**limits: int) -> Caller:
    return Caller("acme", "k", frozenset(), KeyLimits(**limits))


def test_requests_a_minute_are_counted_and_come_back() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    for _ in range(2):
        quotas.charge(caller(requests_per_minute=2), 5)
    with pytest.raises(ResourceExhausted, match="requests_per_minute of 2 is used up") as refusal:
        quotas.charge(caller(requests_per_minute=2), 5)
    assert refusal.value.retry_after_seconds == pytest.approx(30)
    clock.seconds = 30
    quotas.charge(caller(requests_per_minute=2), 5)


def test_tokens_that_were_not_used_are_given_back() -> None:
    quotas = Quotas(Clock())
    charge = quotas.charge(caller(tokens_per_minute=100), 90)
    with pytest.raises(ResourceExhausted, match="tokens_per_minute"):
        quotas.charge(caller(tokens_per_minute=100), 90)
    charge.settle(5)
    charge.settle(5)
    quotas.charge(caller(tokens_per_minute=100), 90)


def test_a_refusal_charges_nothing() -> None:
    quotas = Quotas(Clock())
    limits = caller(tokens_per_minute=1000, tokens_per_day=50)
    quotas.charge(limits, 50)
    for _ in range(30):
        with pytest.raises(ResourceExhausted, match="tokens_per_day"):
            quotas.charge(limits, 50)
    (bucket,) = (bucket for name, bucket in quotas._uses["k"].tokens if name == "tokens_per_minute")
    assert bucket.level == 950


def test_calls_at_once_are_bounded_by_key() -> None:
    quotas = Quotas(Clock())
    charge = quotas.charge(caller(concurrent_requests=1), 5)
    with pytest.raises(ResourceExhausted, match="1 calls with this key are running"):
        quotas.charge(caller(concurrent_requests=1), 5)
    charge.settle(5)
    quotas.charge(caller(concurrent_requests=1), 5)


def test_a_key_without_limits_is_not_counted() -> None:
    quotas = Quotas(Clock())
    for _ in range(100):
        quotas.charge(Caller("acme", "k"), 10**9).settle(0)
    assert not quotas._uses
