"""What a policy is asked when it is measured: held-out, and never sent by a user."""

import random

from attune.rehearsal.demo.dialogues import CONCIERGE, SCORED_SKILLS, TUTOR, one_item
from attune.rehearsal.demo.items import ERRANDS_SKILL, HELDOUT, REGRESSION, Item, load_items

ITEMS_PER_SKILL = 200
_TUTORS = "style-tutor"


def heldout_errands() -> list[Item]:
    """All held-out errands."""
    return [item for item in load_items(HELDOUT) if item.skill == ERRANDS_SKILL]


def heldout_skills() -> list[Item]:
    """So many items of each skill that is scored, the shipped held-out ones first.

    The skills that both personas have are asked of the one that is trained alone: the other's answers cannot change.
    What the gate looks at is not among them.
    """
    shipped = load_items(HELDOUT)
    known = {_key(item) for item in (*shipped, *load_items(REGRESSION))}
    rng = random.Random("rehearsal")
    items: list[Item] = []
    for skill in SCORED_SKILLS:
        persona = TUTOR if skill == _TUTORS else CONCIERGE
        chosen = [item for item in shipped if (item.skill, item.persona) == (skill, persona)][:ITEMS_PER_SKILL]
        while len(chosen) < ITEMS_PER_SKILL:
            item = one_item(rng, skill, persona, True)
            if _key(item) not in known:
                known.add(_key(item))
                chosen.append(item)
        items += chosen
    return items


def _key(item: Item) -> str:
    return f"{item.persona} {item.tools} {item.messages}"
