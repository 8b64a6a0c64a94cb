"""`attune dataset` as an operator types it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attune.cli.main import app
from attune.errors import AttuneError
from attune.lake.dataset import list_datasets
from tests.aggregator.office import open_office
from tests.aggregator.recipes.conversation import UP, answer, opinion
from tests.aggregator.recipes.story import story, write_lake

ID = re.compile(r"d-[0-9a-f]{32}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose lake holds a story, and the aggregator's office."""
    folder = tmp_path_factory.mktemp("data")
    write_lake(folder / "lake", story())
    with open_office(folder):
        yield folder


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    """A data folder without a lake, and the aggregator's office."""
    with open_office(tmp_path):
        yield tmp_path


def run(data: Path, *words: str) -> Result:
    result = CliRunner().invoke(app, ["dataset", *words, "--data", str(data)], env={"COLUMNS": "160"})
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


def test_diff_says_what_came_and_what_went(own: Path) -> None:
    write_lake(own / "lake", story())
    (before,) = build(own, "--recipe", "demonstrations")
    lake = own / "lake"
    for table in ("responses", "feedback"):
        for file in sorted((lake / table).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    write_lake(lake, [*story(), answer(60), opinion(300, 60, rating=5), opinion(301, 6, rating=1, end_user="zoe")])
    (after,) = build(own, "--recipe", "demonstrations")
    said = run(own, "diff", before, after).output
    assert "1 only in the first, 1 only in the second" in said
    assert "0 only in the first, 0 only in the second" in run(own, "diff", after, after).output
    (prompts,) = build(own, "--recipe", "prompts")
    assert "recipe: demonstrations -> prompts" in run(own, "diff", after, prompts).output


def test_verify_finds_a_flipped_bit_and_a_manifest_that_lies(own: Path) -> None:
    write_lake(own / "lake", [answer(1), opinion(1, 1, thumb=UP)])
    (whole,) = build(own)
    (damaged,) = build(own, "--recipe", "prompts")
    assert run(own, "verify").exit_code == 0
    part = own / "datasets" / damaged / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    result = run(own, "verify")
    assert result.exit_code == 1
    assert f"{whole}: whole" in result.output
    assert "damaged" in result.output
    assert run(own, "verify", whole).exit_code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("show", "nonsense"), "that is no dataset's id"),
        (("show", "../../etc"), "is no dataset's id"),
        (("show", "d-00000000"), "no dataset d-00000000"),
        (("build", "--recipe", "thumb"), "there is no recipe thumb; there are demonstrations, pairs"),
        (("build", "--persona", "nobody"), "no such persona"),
        (("build", "--recipe", "../x"), "recipes must be 1 to 63"),
        (("diff", "d-00000000", "d-00000001"), "no dataset d-00000000"),
        (("verify", "d-00000000"), "no dataset d-00000000"),
    ],
)
def test_what_is_not_there_is_refused_in_a_sentence(data: Path, words: tuple[str, ...], sentence: str) -> None:
    build(data)
    assert sentence in refusal(data, *words)


def test_without_a_lake_nothing_is_built(own: Path) -> None:
    assert "there is no lake yet" in refusal(own, "build")


def test_explain_says_why_an_example_is_in_and_what_it_weighs(data: Path) -> None:
    run(data, "build", "--recipe", "thumbs")
    row = list_datasets(data / "datasets", "default", "concierge", "thumbs")[-1].table().to_pylist()[0]
    said = run(data, "explain", row["example_id"]).output.splitlines()
    assert said[0].startswith(f"{row['example_id']} is in d-")
    assert said[1:] == ["  1         by the recipe", "  = 1       its weight"]
    with pytest.raises(AttuneError, match="say nothing of that id"):
        run(data, "explain", "nobody-knows-it")
