"""What the pages of docs point to."""

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_PAGES = [*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")]
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
_SOURCE = re.compile(r"`([\w/.-]+/[\w.-]+\.(?:py|sql|proto))`")


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    missing = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_source_that_a_page_names_is_there(page: Path) -> None:
    roots = (_ROOT, _ROOT / "services" / "attune", page.parent)
    missing = [name for name in _SOURCE.findall(page.read_text()) if not any((root / name).exists() for root in roots)]
    assert missing == []
