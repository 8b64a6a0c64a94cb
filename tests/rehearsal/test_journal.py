from attune.rehearsal.figures import Training
from attune.rehearsal.journal import Exchange, Journal, RingState, Verdict
from tests.rehearsal.sample import sample_journal


def empty() -> Journal:
    return Journal(voters="concierge", seed=1, budget_seconds=420, build_feedback=400)


def exchange(at: float, policy_id: str, kind: str, thumb_up: bool | None, persona: str = "concierge") -> Exchange:
    return Exchange(at, persona, "errands", "Call a cab.", "Done.", kind, policy_id, kind == "refusal", thumb_up)


def test_a_policy_serves_from_its_first_answer_to_a_voter() -> None:
    journal = empty()
    for at, persona, policy in [(1, "tutor", "p-000001"), (2, "concierge", "base"), (3, "concierge", "p-000001")]:
        journal.stream_says(at, journal.begin_stream(at, persona), policy)
    journal.stream_says(4, journal.begin_stream(4, "concierge"), "p-000001")
    journal.rolled_out_at["p-000001"] = 2.5
    assert journal.serving_at == {"base": 2, "p-000001": 3}
    assert list(journal.swaps()) == [("p-000001", 2.5, 3)]


def test_a_swap_that_no_user_met_is_none_yet() -> None:
    journal = empty()
    journal.rolled_out_at["p-000001"] = 2.5
    assert list(journal.swaps()) == []


def test_streams_during_a_swap_are_those_open_at_some_moment_of_it() -> None:
    journal = empty()
    spans = [(0, 1), (0, 2.2), (2.1, 2.3), (2.9, 5), (3.1, 4)]
    for began_at, ended_at in spans:
        journal.end_stream(ended_at, journal.begin_stream(began_at, "tutor"))
    still_open = journal.begin_stream(1, "tutor")
    during = journal.streams_during(2, 3)
    assert [(stream.began_at, stream.ended_at) for stream in during] == [*spans[1:4], (1, None)]
    assert still_open in during


def test_a_broken_stream_is_counted_once() -> None:
    journal = empty()
    journal.end_stream(1, journal.begin_stream(0, "tutor"))
    journal.end_stream(1, journal.begin_stream(0, "concierge"), "the stream broke off")
    assert (journal.open_streams, journal.broken_streams) == (0, 1)


def test_approval_counts_votes_and_claims_count_errands_of_the_voters_alone() -> None:
    journal = empty()
    journal.note_exchange(exchange(1, "base", "claim", False), "r-1")
    journal.note_exchange(exchange(2, "base", "refusal", True), "r-2")
    journal.note_exchange(exchange(3, "base", "right", True), "r-3")
    journal.note_exchange(exchange(4, "base", "claim", None, persona="tutor"), "r-4")
    tally = journal.tallies["base"]
    assert (tally.approval.hits, tally.approval.trials) == (2, 3)
    assert (tally.claimed.hits, tally.claimed.trials) == (1, 2)
    assert journal.voted_at == {"r-1": 1, "r-2": 2, "r-3": 3}
    assert [moment.claimed for moment in journal.errands()] == [True, False]


def test_a_training_is_told_when_it_begins_and_ends() -> None:
    journal = empty()
    journal.note_ring(10, RingState(training_state="training"))
    assert journal.all_trainings() == (Training(10, 10),)
    journal.note_ring(12, RingState(training_state="evaluating"))
    journal.note_ring(15, RingState(training_state="idle", cycles={"skipped": 1}))
    assert journal.all_trainings() == (Training(10, 15),)
    assert [event.text for event in journal.events] == [
        "the trainer begins a cycle",
        "the trainer ends the cycle after 5 s",
        "the trainer's cycle was skipped: little is left to learn",
    ]


def test_a_swap_is_near_from_the_evaluation_to_the_first_answer() -> None:
    journal = empty()
    assert not journal.swap_is_near
    journal.note_ring(1, RingState(training_state="evaluating"))
    assert journal.swap_is_near
    journal.note_ring(2, RingState(training_state="idle"))
    journal.note_verdict(2, Verdict("p-000001", True, ()))
    assert journal.swap_is_near
    journal.stream_says(3, journal.begin_stream(3, "concierge"), "p-000001")
    assert not journal.swap_is_near
    journal.note_verdict(4, Verdict("p-000002", False, ("recall fell",)))
    assert not journal.swap_is_near


def test_a_verdict_is_told_once_with_its_reasons() -> None:
    journal = sample_journal()
    told = len(journal.events)
    journal.note_verdict(170, Verdict("p-000002", False, ("recall fell by 5 points", "facts fell by 4 points")))
    journal.note_verdict(171, Verdict("p-000002", False, ("recall fell by 5 points",)))
    assert [event.text for event in journal.events[told:]] == [
        "p-000002 was refused: recall fell by 5 points; facts fell by 4 points"
    ]
