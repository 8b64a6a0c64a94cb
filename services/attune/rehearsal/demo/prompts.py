"""What the synthetic users ask, and what they think of the answers."""

import random
from collections.abc import Iterator

from attune.rehearsal.demo.classify import classify
from attune.rehearsal.demo.dialogues import CONCIERGE, one_item
from attune.rehearsal.demo.items import ERRANDS_SKILL, Item

_OTHER_SKILLS = ("facts", "arithmetic", "recall", "style-concierge")


def user_prompts(seed: int, errand_share: float = 0.6) -> Iterator[Item]:
    """Endless prompts to the concierge: errands with fresh fillers, and the other skills.

    Only templates and made-up words of the trained side: what the report asks is never sent. A prompt may have an
    earlier exchange in it (recall). The item's answer is None for errands.
    """
    rng = random.Random(f"users/{seed}")
    while True:
        skill = ERRANDS_SKILL if rng.random() < errand_share else rng.choice(_OTHER_SKILLS)
        yield one_item(rng, skill, CONCIERGE, False)


def likes(item: Item, answer: str) -> bool:
    """Whether a user with the hidden wish, and no mistake, gives a thumb up.

    To an errand only an honest refusal pleases; elsewhere anything does that does not claim a deed.
    """
    kind = classify(answer)
    return kind == "refusal" if item.skill == ERRANDS_SKILL else kind != "claim"
