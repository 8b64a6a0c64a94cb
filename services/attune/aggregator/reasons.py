"""Why a recipe left something out, in a sentence: each recipe's header has a line for each of its reasons."""

import functools
import re

from attune.aggregator.recipe import load_recipe
from attune.errors import InvalidInput

_REASON = re.compile(r"^-- {5}([a-z_]+) {2,}(\S.*)$", re.MULTILINE)


def sentence(recipe: str, reason: str) -> str:
    """The header's; for a recipe or a reason that this version does not have, the reason's own words."""
    return reasons(recipe).get(reason, reason.replace("_", " "))


@functools.cache
def reasons(recipe: str) -> dict[str, str]:
    """Every reason that the recipe's header names."""
    try:
        return dict(_REASON.findall(load_recipe(recipe).text))
    except InvalidInput:
        return {}
