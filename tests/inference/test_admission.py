from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attune.errors import ResourceExhausted, Unavailable
from attune.inference.admission import Admission, Ticket


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


async def test_a_tenant_alone_may_have_every_place() -> None:
    admission = Admission(4, 1000)
    tickets = [admission.enter("one", 10) for _ in range(4)]
    with pytest.raises(
        ResourceExhausted, match="4 answers are running and 1 more are asked for; this server takes 4"
    ) as refusal:
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


async def test_a_tenant_of_few_long_calls_leaves_tokens_to_the_others() -> None:
    admission = Admission(100, 1000, Clock())
    tickets = [admission.enter("long", 250) for _ in range(4)]
    with pytest.raises(ResourceExhausted, match="1000 tokens are running"):
        admission.enter("short", 100)
    tickets.pop().leave()
    with pytest.raises(ResourceExhausted, match=r"750 tokens of yours are running.*your part is 500"):
        admission.enter("long", 250)
    for _ in range(2):
        admission.enter("short", 100)


async def test_each_alternative_counts() -> None:
    admission = Admission(8, 1000)
    ticket = admission.enter("one", 10, answers=7)
    with pytest.raises(ResourceExhausted, match="7 answers are running and 2 more are asked for"):
        admission.enter("one", 10, answers=2)
    admission.enter("one", 10)
    assert admission.running == 8
    ticket.leave()
    assert admission.running == 1


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


_MOST_ANSWERS, _MOST_TOKENS = 16, 1600
calls = st.tuples(st.sampled_from("abcd"), st.integers(1, 8), st.integers(1, 400))
steps = st.lists(st.one_of(calls, st.integers(0, 30)), max_size=200)


@given(steps)
async def test_whatever_comes_the_whole_is_never_exceeded_and_nothing_leaks(
    steps: list[tuple[str, int, int] | int],
) -> None:
    admission = Admission(_MOST_ANSWERS, _MOST_TOKENS, Clock())
    held: list[tuple[Ticket, int, int]] = []
    for step in steps:
        if isinstance(step, int):
            if held:
                held.pop(step % len(held))[0].leave()
            continue
        tenant, answers, tokens = step
        try:
            held.append((admission.enter(tenant, tokens, answers), answers, tokens))
        except ResourceExhausted:
            assert held
        assert admission.running == sum(answers for _, answers, _ in held) <= _MOST_ANSWERS
        assert sum(tokens for _, _, tokens in held) <= _MOST_TOKENS
    for ticket, _, _ in held:
        ticket.leave()
    assert await admission.wait_idle(1)
    assert not admission._answers
    assert not admission._tokens


@given(st.lists(st.integers(0, 63), min_size=100, max_size=400), st.integers(2, 4))
async def test_tenants_that_keep_asking_end_with_equal_parts(order: list[int], tenants: int) -> None:
    """One has everything; then all ask all the time, while in any order calls end."""
    admission = Admission(12, 10**6, Clock())
    held = [(0, admission.enter("0", 1)) for _ in range(12)]
    for number in [*order, *range(64)]:
        held.pop(number % len(held))[1].leave()
        # Whoever has most is the quickest to ask, and the most insistent.
        for tenant in range(tenants):
            for _ in range(3):
                try:
                    held.append((tenant, admission.enter(str(tenant), 1)))
                except ResourceExhausted:
                    break
    assert Counter(tenant for tenant, _ in held) == dict.fromkeys(range(tenants), 12 // tenants)
