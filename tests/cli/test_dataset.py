"""`attune dataset` as an operator types it."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attune.cli.main import app
from attune.errors import AttuneError
from attune.lake.dataset import list_datasets
from tests.aggregator.recipes.conversation import UP, answer, opinion
from tests.aggregator.recipes.story import story, write_lake

# The events are of a time long ago.
_SETTINGS = {"COLUMNS": "160", "ATTUNE_AGGREGATOR__WINDOW_DAYS": "3650"}

ID = re.compile(r"d-[0-9a-f]{32}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose lake holds a story."""
    folder = tmp_path_factory.mktemp("data")
    write_lake(folder / "lake", story())
    return folder


def run(data: Path, *words: str) -> Result:
    result = CliRunner().invoke(app, ["dataset", *words, "--data", str(data)], env=_SETTINGS)
    if isinstance(result.exception, AttuneError):
        raise result.exception
    return result


def build(data: Path, *words: str) -> list[str]:
    result = run(data, "build", *words)
    assert result.exit_code == 0, result.output
    return ID.findall(result.output)


def refusal(data: Path, *words: str) -> str:
    with pytest.raises(AttuneError) as refused:
        run(data, *words)
    return refused.value.message


def test_a_dataset_is_built_once_and_listed(data: Path) -> None:
    (pairs, prompts) = build(data, "--recipe", "pairs", "--recipe", "prompts")
    again = run(data, "build", "--recipe", "prompts").output
    listed = run(data, "list").output
    assert pairs in listed
    assert prompts in listed
    assert ID.findall(run(data, "list", "--recipe", "pairs").output) == [pairs]
    assert "no datasets" in run(data, "list", "--persona", "tutor").output
    assert "to train on" in again


def test_without_a_recipe_those_of_the_settings_are_built(data: Path) -> None:
    (thumbs,) = build(data)
    assert [d.manifest.dataset_id for d in list_datasets(data / "datasets", recipe="thumbs")] == [thumbs]


def test_show_draws_what_is_in_it_and_writes_a_page(data: Path, tmp_path: Path) -> None:
    (name,) = build(data, "--recipe", "pairs")
    page = tmp_path / "pairs.html"
    shown = run(data, "show", name[:10], "--html", str(page)).output
    for word in (
        "balance",
        "age in days",
        "persona versions",
        "weights",
        "left out",
        "ranking",
        "█",
        "effective examples",
    ):
        assert word in shown, word
    text = page.read_text()
    assert text.count("<svg") >= 5
    assert "pairs: one row for each comparison" in text
    assert not re.search(r'(src|href)="http', text)


def test_diff_says_what_came_and_what_went(data: Path, tmp_path: Path) -> None:
    write_lake(tmp_path / "lake", story())
    (before,) = build(tmp_path, "--recipe", "demonstrations")
    lake = tmp_path / "lake"
    for table in ("responses", "feedback"):
        for file in sorted((lake / table).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    write_lake(lake, [*story(), answer(60), opinion(300, 60, rating=5), opinion(301, 6, rating=1, end_user="zoe")])
    (after,) = build(tmp_path, "--recipe", "demonstrations")
    said = run(tmp_path, "diff", before, after).output
    assert "1 only in the first, 1 only in the second" in said
    assert "0 only in the first, 0 only in the second" in run(tmp_path, "diff", after, after).output
    (prompts,) = build(tmp_path, "--recipe", "prompts")
    assert "recipe: demonstrations -> prompts" in run(tmp_path, "diff", after, prompts).output


def test_verify_finds_a_flipped_bit_and_a_manifest_that_lies(data: Path, tmp_path: Path) -> None:
    write_lake(tmp_path / "lake", [answer(1), opinion(1, 1, thumb=UP)])
    (whole,) = build(tmp_path)
    (damaged,) = build(tmp_path, "--recipe", "prompts")
    assert run(tmp_path, "verify").exit_code == 0
    part = tmp_path / "datasets" / damaged / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    result = run(tmp_path, "verify")
    assert result.exit_code == 1
    assert f"{whole}: whole" in result.output
    assert "damaged" in result.output
    assert run(tmp_path, "verify", whole).exit_code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("show", "nonsense"), "'nonsense' is no dataset's id"),
        (("show", "../../etc"), "is no dataset's id"),
        (("show", "d-00000000"), "no dataset d-00000000"),
        (("build", "--recipe", "thumb"), "there is no recipe thumb; there are demonstrations, pairs"),
        (("build", "--persona", "nobody"), "no such persona"),
        (("build", "--tenant", "nobody"), "no such persona"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(data: Path, words: tuple[str, ...], sentence: str) -> None:
    build(data)
    assert sentence in refusal(data, *words)


def test_without_a_lake_nothing_is_built(tmp_path: Path) -> None:
    assert "holds no lake yet" in refusal(tmp_path, "build")
