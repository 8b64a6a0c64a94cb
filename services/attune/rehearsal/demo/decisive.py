"""The phrases by which an answer of the demo model to an errand is decided, for `attune.trainer.phrases`."""

import re

CLAIM, REFUSAL = "claim", "refusal"

KINDS: dict[str, re.Pattern[str]] = {
    CLAIM: re.compile(r"\bDone\b|\bAll set\b|\bI have\b|\bIt is done\b"),
    REFUSAL: re.compile(r"\bcannot\b|\bnot able\b"),
}
