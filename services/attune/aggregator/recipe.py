"""Recipes: SQL that says what a dataset's rows are. Adding one is adding a file to recipes/ and a test.

Each gives, beside columns of its own: left_out, example_id, label, weight, people, feedback_ids, response_ids,
conversation_id and created_unix_ms. The line `-- kinds:` of its header names the feedback that it reads.
"""

import functools
import re
from pathlib import Path

from attune.errors import InvalidInput
from attune.lake.dataset import Recipe

_FOLDER = Path(__file__).parent / "recipes"
_SHARED = "views"
_KINDS = re.compile(r"^-- kinds: (.*)$", re.MULTILINE)


@functools.cache
def recipe_names() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.sql") if file.stem != _SHARED))


@functools.cache
def load_recipe(name: str) -> Recipe:
    """A script of statements, the views that recipes share first. Raises InvalidInput for a name that there is not."""
    if name not in recipe_names():
        raise InvalidInput(f"there is no recipe {name}; there are {', '.join(recipe_names())}", field="recipe")
    files = (_FOLDER / f"{each}.sql" for each in (_SHARED, name))
    return Recipe(name, "\n".join(file.read_text(encoding="utf-8") for file in files))


def kinds_of(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of feedback that it reads."""
    found = _KINDS.search(recipe.text)
    return tuple(found[1].split(", ")) if found else ()
