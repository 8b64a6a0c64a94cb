from attune.rehearsal.enough import on_the_way, still_missing
from attune.rehearsal.journal import Journal, RingState, Tally, Verdict


def journal(*swapped: str, refused: int = 0, **cycles: int) -> Journal:
    """After policies that passed and were swapped in, and some that were refused."""
    made = Journal("concierge", 1, 420, 400)
    for number, policy_id in enumerate(swapped):
        made.note_verdict(number, Verdict(policy_id, passed=True, reasons=()))
        made.rolled_out_at[policy_id] = made.serving_at[policy_id] = number
    for number in range(refused):
        made.note_verdict(9, Verdict(f"p-00009{number}", passed=False, reasons=("worse",)))
    made.note_ring(10, RingState(cycles=cycles))
    return made


def test_two_policies_and_votes_on_the_last_are_waited_for() -> None:
    assert still_missing(journal("p-000001"), shuffled=False) == "policy 2 to be swapped in"
    both = journal("p-000001", "p-000002")
    assert still_missing(both, shuffled=False) == "votes on p-000002"
    assert on_the_way(both, shuffled=False)
    both.tallies["p-000002"] = Tally(votes=100, errands=50, claims=20)
    assert still_missing(both, shuffled=False) == "policy 3: 40% of users' errands are still claimed"
    both.tallies["p-000002"] = Tally(votes=100, errands=50, claims=4)
    assert still_missing(both, shuffled=False) == ""


def test_a_cycle_that_runs_or_has_not_begun_is_given_time_and_a_ring_that_learns_nothing_is_not() -> None:
    assert on_the_way(journal(), shuffled=False)
    assert on_the_way(journal("p-000001"), shuffled=False)
    assert not on_the_way(journal(refused=2), shuffled=False)
    assert not on_the_way(journal("p-000001", failed=1), shuffled=False)
    training = journal("p-000001", refused=1)
    assert not on_the_way(training, shuffled=False)
    training.note_ring(11, RingState(training_state="training"))
    assert on_the_way(training, shuffled=False)


def test_what_is_only_wished_for_gets_no_more_time() -> None:
    third = journal("p-000001", "p-000002")
    third.tallies["p-000002"] = Tally(votes=100, errands=50, claims=20)
    assert not on_the_way(third, shuffled=False)


def test_with_shuffled_thumbs_candidates_only_have_to_meet_the_gate() -> None:
    assert still_missing(journal(refused=1), shuffled=True) == "candidate 2 to meet the gate"
    assert still_missing(journal(refused=1, skipped=1), shuffled=True) == ""
    assert on_the_way(journal(refused=1), shuffled=True)
