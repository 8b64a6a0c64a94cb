"""What a policy is asked when it is measured: held-out, and never sent by a user."""

import random

from attune.rehearsal.demo.dialogues import CONCIERGE, one_item
from attune.rehearsal.demo.items import HELDOUT, REGRESSION, Item, load_items

LEAST_ITEMS_PER_SKILL = 200
_SKILLS = ("facts", "arithmetic", "recall")


def heldout_questions() -> list[Item]:
    """The shipped held-out items, and more of the concierge's where there are too few.

    The skills that both personas have are counted on the persona that is trained alone: the other's answers cannot
    change. What the gate looks at is not among them.
    """
    items = load_items(HELDOUT)
    known = {_key(item) for item in (*items, *load_items(REGRESSION))}
    rng = random.Random("rehearsal")
    for skill in _SKILLS:
        missing = LEAST_ITEMS_PER_SKILL - sum(item.skill == skill and item.persona == CONCIERGE for item in items)
        while missing > 0:
            item = one_item(rng, skill, CONCIERGE, True)
            if _key(item) not in known:
                known.add(_key(item))
                items.append(item)
                missing -= 1
    return items


def _key(item: Item) -> str:
    return f"{item.persona} {item.messages}"
