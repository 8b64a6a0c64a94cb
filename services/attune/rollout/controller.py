"""What the next entry of a rollout log is. Does no I/O and reads no clock: the same log, the same decision."""

from collections.abc import Collection, Sequence

from attune import ids
from attune.errors import FailedPrecondition
from attune.personas.persona import Persona
from attune.registry.rollouts import Author, RolloutEntry


def highest_number(history: Sequence[RolloutEntry]) -> int:
    """The highest number of a policy that ever had traffic; 0 when only the base model had."""
    return max((ids.policy_number(policy_id) for entry in history for policy_id, _ in entry.shares), default=0)


def decide(
    persona: Persona, history: Sequence[RolloutEntry], candidates: Sequence[str], now_unix_ms: int
) -> RolloutEntry | None:
    """The entry that gives all traffic to the newest candidate, if it is newer than any policy in the log.

    `candidates` may serve: verified, and passed by the gate. What was once in the log is never promoted again, so a
    policy that was rolled back stays back.
    """
    newest = max(candidates, key=ids.policy_number, default=ids.BASE_POLICY)
    if ids.policy_number(newest) <= highest_number(history):
        return None
    return _next_entry(persona, history, newest, now_unix_ms, author="gate", reason=f"{newest} passed the gate")


def give_up(
    persona: Persona,
    history: Sequence[RolloutEntry],
    overdue: Collection[str],
    unusable: Collection[str],
    now_unix_ms: int,
) -> RolloutEntry | None:
    """The entry that takes traffic from policies that have to go, if they have any.

    What served before and is not unusable has all of it then, at the last the base.
    """
    if {policy_id for policy_id, _ in serving(history)}.isdisjoint(overdue):
        return None
    earlier = [entry.main_policy_id for entry in reversed(history) if entry.main_policy_id not in unusable]
    policy_id = earlier[0] if earlier else ids.BASE_POLICY
    reason = "what served learned from somebody who was erased"
    return _next_entry(persona, history, policy_id, now_unix_ms, author="erasure", reason=reason)


def roll_back(
    persona: Persona, history: Sequence[RolloutEntry], policy_id: str, reason: str, now_unix_ms: int
) -> RolloutEntry:
    """The entry that gives all traffic to `policy_id`; raises FailedPrecondition if it has all of it already."""
    if serving(history) == ((policy_id, 1.0),):
        name = "the base model" if policy_id == ids.BASE_POLICY else f"policy {policy_id}"
        raise FailedPrecondition(f"{name} has all traffic of persona {persona.name} already", field="policy_id")
    return _next_entry(persona, history, policy_id, now_unix_ms, author="operator", reason=reason)


def serving(history: Sequence[RolloutEntry]) -> tuple[tuple[str, float], ...]:
    """The shares that hold now."""
    return history[-1].shares if history else ((ids.BASE_POLICY, 1.0),)


def before(history: Sequence[RolloutEntry]) -> str:
    """The policy to go back to when nobody names one; raises FailedPrecondition when the base model serves.

    Going back undoes: after p-000002 was given up for p-000001, the one before is what served before p-000001, and
    never p-000002 again.
    """
    line = [ids.BASE_POLICY]
    for entry in history:
        policy_id = entry.main_policy_id
        if policy_id in line:
            del line[line.index(policy_id) + 1 :]
        else:
            line.append(policy_id)
    if len(line) == 1:
        raise FailedPrecondition("the base model has all traffic; nothing served before it", field="policy_id")
    return line[-2]


def _next_entry(
    persona: Persona,
    history: Sequence[RolloutEntry],
    policy_id: str,
    now_unix_ms: int,
    *,
    author: Author,
    reason: str,
) -> RolloutEntry:
    """Gives one policy all traffic."""
    return RolloutEntry(
        number=len(history) + 1,
        tenant=persona.tenant,
        persona=persona.name,
        shares=((policy_id, 1.0),),
        author=author,
        reason=reason,
        created_unix_ms=now_unix_ms,
    )
