"""The rollout log: how a persona's traffic is shared, entry by entry; the newest is the truth, all are the trail."""

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from attune import ids
from attune.errors import Aborted, DataLoss, InvalidInput
from attune.files import create_file, make_folder, names_in, read_file
from attune.registry.fields import Fields, canonical_json

Author = Literal["gate", "operator", "erasure"]

MAX_REASON_CHARACTERS = 1000
_MAX_SHARES = 16
_MAX_ENTRY_BYTES = 64 << 10
_ENTRY_NAME = re.compile(r"([1-9][0-9]{0,8})\.json")


@dataclass(frozen=True)
class RolloutEntry:
    """One entry of a persona's log, numbered from 1.

    `shares` pairs policy ids (`base` for the base model) with parts of the traffic that are above 0 and add up to 1.
    Raises InvalidInput for anything else.
    """

    number: int
    tenant: str
    persona: str
    shares: tuple[tuple[str, float], ...]
    author: Author
    reason: str
    created_unix_ms: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InvalidInput(f"rollout entry {self.number}: entries are numbered from 1")
        ids.check_name(self.tenant, "tenant")
        ids.check_name(self.persona, "persona")
        policies = {policy_id for policy_id, _ in self.shares if ids.policy_number(policy_id) >= 0}
        if not 1 <= len(self.shares) <= _MAX_SHARES or len(policies) != len(self.shares):
            raise InvalidInput(f"a rollout has 1 to {_MAX_SHARES} shares, each of another policy", field="shares")
        parts = [share for _, share in self.shares]
        if not all(0 < part <= 1 for part in parts) or not math.isclose(math.fsum(parts), 1, abs_tol=1e-9):
            raise InvalidInput("the shares of a rollout are above 0 and add up to 1", field="shares")
        if self.author not in get_args(Author):
            raise InvalidInput("a rollout is made by the gate, an operator or an erasure", field="author")
        if len(self.reason) > MAX_REASON_CHARACTERS:
            raise InvalidInput(
                f"reason has {len(self.reason)} characters; at most {MAX_REASON_CHARACTERS} are taken", field="reason"
            )

    @property
    def main_policy_id(self) -> str:
        """The policy with most of the traffic; of equal ones the first."""
        return max(self.shares, key=lambda share: share[1])[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "tenant": self.tenant,
            "persona": self.persona,
            "shares": [{"policy_id": policy_id, "share": share} for policy_id, share in self.shares],
            "author": self.author,
            "reason": self.reason,
            "created_unix_ms": self.created_unix_ms,
        }

    @classmethod
    def from_json(cls, fields: Fields) -> "RolloutEntry":
        """Raises DataLoss for anything that to_json would not write."""
        try:
            return cls(
                number=fields.integer("number"),
                tenant=fields.text("tenant"),
                persona=fields.text("persona"),
                shares=tuple((share.text("policy_id"), share.number("share")) for share in fields.objects("shares")),
                author=cast(Author, fields.text("author")),
                reason=fields.text("reason"),
                created_unix_ms=fields.integer("created_unix_ms"),
            )
        except InvalidInput as error:
            raise DataLoss(error.message) from None


class RolloutLog:
    """The entries below `<folder>/rollouts/<tenant>/<persona>/`, each created once and never changed.

    Any number of processes may append and read. Before the first entry the base model has all traffic.
    """

    def __init__(self, folder: Path) -> None:
        self._rollouts = folder / "rollouts"

    def append(self, entry: RolloutEntry) -> None:
        """Adds the entry that follows the newest one, durably.

        Raises Aborted if the entry's number is not the next one: somebody else was first, so whatever led to the
        entry has to be read and decided again.
        """
        numbers = self._numbers(entry.tenant, entry.persona)
        if entry.number != max(numbers, default=0) + 1:
            raise self._late(entry)
        folder = self._rollouts / entry.tenant / entry.persona
        make_folder(folder)
        try:
            create_file(folder / f"{entry.number}.json", canonical_json(entry.to_json()))
        except FileExistsError:
            raise self._late(entry) from None

    def current(self, tenant: str, persona: str) -> RolloutEntry | None:
        """The newest entry, none before the first; raises DataLoss if it is damaged: keep what you had."""
        numbers = self._numbers(tenant, persona)
        return self._read(tenant, persona, max(numbers)) if numbers else None

    def history(self, tenant: str, persona: str) -> tuple[RolloutEntry, ...]:
        """All entries, oldest first; raises DataLoss if one is damaged or missing."""
        numbers = sorted(self._numbers(tenant, persona))
        if numbers != list(range(1, len(numbers) + 1)):
            raise DataLoss(f"an entry of the rollout log of persona {persona} is missing")
        return tuple(self._read(tenant, persona, number) for number in numbers)

    def personas(self) -> tuple[tuple[str, str], ...]:
        """(tenant, persona) of every log with an entry, in order."""
        found = []
        for tenant in names_in(self._rollouts):
            for persona in names_in(self._rollouts / tenant):
                with contextlib.suppress(InvalidInput):  # a folder that is no persona's
                    if self._numbers(tenant, persona):
                        found.append((tenant, persona))
        return tuple(found)

    def _numbers(self, tenant: str, persona: str) -> list[int]:
        folder = self._rollouts / ids.check_name(tenant, "tenant") / ids.check_name(persona, "persona")
        return [int(match[1]) for name in names_in(folder) if (match := _ENTRY_NAME.fullmatch(name))]

    def _read(self, tenant: str, persona: str, number: int) -> RolloutEntry:
        file = self._rollouts / tenant / persona / f"{number}.json"
        where = f"rollout entry {number} of persona {persona}"
        try:
            entry = RolloutEntry.from_json(Fields.parse(read_file(file, _MAX_ENTRY_BYTES), where))
        except FileNotFoundError:
            raise DataLoss(f"{where} is missing") from None
        if (entry.tenant, entry.persona, entry.number) != (tenant, persona, number):
            raise DataLoss(f"{where} is another one's")
        return entry

    @staticmethod
    def _late(entry: RolloutEntry) -> Aborted:
        return Aborted(
            f"rollout entry {entry.number} of persona {entry.persona} is not the next one any more; try again"
        )
