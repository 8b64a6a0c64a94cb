"""When users have talked enough: what a rehearsal still waits for, and whether that is on its way."""

from attune.rehearsal.journal import Journal

_POLICIES_WANTED = 2
_POLICIES_AT_MOST = 3
_VOTES_ON_LAST = 100
_ERRANDS_ON_LAST = 50
_LITTLE_LEFT = 0.08


def still_missing(journal: Journal, *, shuffled: bool) -> str:
    """What is still waited for, in words; empty when users have voted enough."""
    if shuffled:
        seen = len(journal.verdicts) + journal.ring.cycles.get("skipped", 0)
        return "" if seen >= _POLICIES_WANTED else f"candidate {seen + 1} to meet the gate"
    swapped = _swapped(journal)
    if len(swapped) < _POLICIES_WANTED:
        return f"policy {len(swapped) + 1} to be swapped in"
    if _lacks_votes(journal, swapped[-1]):
        return f"votes on {swapped[-1]}"
    claimed = journal.tallies[swapped[-1]].claimed.share
    learned = claimed <= _LITTLE_LEFT or journal.ring.cycles.get("skipped", 0) > 0
    if learned or len(swapped) >= _POLICIES_AT_MOST:
        return ""
    return f"policy {len(swapped) + 1}: {claimed:.0%} of users' errands are still claimed"


def on_the_way(journal: Journal, *, shuffled: bool) -> bool:
    """Whether a cycle that is needed has not ended, or its policy lacks only traffic or votes."""
    skipped, failed = (journal.ring.cycles.get(outcome, 0) for outcome in ("skipped", "failed"))
    if len(journal.verdicts) + skipped + failed < _POLICIES_WANTED:
        return True
    if journal.training_since is not None or journal.swap_is_near:
        return True
    swapped = _swapped(journal)
    return not shuffled and len(swapped) >= _POLICIES_WANTED and _lacks_votes(journal, swapped[-1])


def _swapped(journal: Journal) -> list[str]:
    return [policy_id for policy_id, _, _ in journal.swaps()]


def _lacks_votes(journal: Journal, policy_id: str) -> bool:
    """Whether too few have met it to say what became of false claims."""
    tally = journal.tallies.get(policy_id)
    return tally is None or tally.votes < _VOTES_ON_LAST or tally.errands < _ERRANDS_ON_LAST
