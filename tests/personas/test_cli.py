"""`attune persona`, as an operator types it."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attune.cli.persona import persona_app
from attune.cli.preflight import unapplied
from attune.errors import AttuneError
from attune.personas import Personas, PersonaVersions
from attune.settings import Settings

SUPPORT = """# Answers about orders.
system_prompt = "You help customers."
guidelines = "- Never promise a refund."
approval = "person"

[sampling]
temperature = 0.6

[limits]
max_tokens = 512

[[tools]]
name = "find_order"
description = "Where an order is."
parameters.required = ["number"]
parameters.properties = { number.type = "string", language.type = "string" }
"""
CALMER = SUPPORT.replace("0.6", "0.4").replace("customers.", "customers, calmly.")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("ATTUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATTUNE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "support.toml").write_text(SUPPORT)
    return tmp_path / "data"


def run(*arguments: str) -> str:
    outcome = CliRunner().invoke(persona_app, list(arguments), catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def refusal(*arguments: str) -> str:
    with pytest.raises(AttuneError) as caught:
        CliRunner().invoke(persona_app, list(arguments), catch_exceptions=False)
    assert "\n" not in caught.value.message
    return caught.value.message


def applied(data: Path) -> dict[tuple[str, str], list[int]]:
    return PersonaVersions(data / "personas").all()


def test_applying_says_what_is_new_what_changed_and_what_did_not(data: Path) -> None:
    assert "no personas yet" in run("list")
    assert run("apply", "support.toml").startswith("+ support version 1 · ")
    assert run("apply", "support.toml").rstrip().endswith("in service already")
    Path("support.toml").write_text(CALMER)
    said = run("apply", "support.toml")
    assert said.startswith("✓ support version 2 · ")
    assert said.rstrip().endswith("changed: system_prompt, sampling.temperature")
    assert applied(data) == {("default", "support"): [1, 2]}

    Path("other.toml").write_text('system_prompt = ""')
    assert "+ acme/other version 1" in run("apply", "other.toml", "--tenant", "acme")
    rows = [line.split()[:3] for line in run("list").splitlines()]
    assert rows == [["persona", "tenant", "version"], ["other", "acme", "1"], ["support", "default", "2"]]
    assert "support" not in run("list", "--tenant", "acme")


def test_of_several_files_all_are_applied_or_none(data: Path) -> None:
    Path("bad.toml").write_text('system_prompt = ""\nlimits.max_tokens = 1')
    assert refusal("apply", "support.toml", "bad.toml") == (
        "bad.toml: sampling.max_tokens is 256; limits.max_tokens allows 1"
    )
    assert refusal("apply", "support.toml", "./support.toml") == "two of these files are persona support"
    assert refusal("apply", "support.toml", "none.toml") == "none.toml: cannot be read: No such file or directory"
    assert refusal("apply", "support.toml", "--tenant", "../up") == (
        "support.toml: tenant: it must be 1 to 63 lower-case letters, digits and dashes, and begin with no dash"
    )
    assert not data.exists()


def test_everything_about_a_persona_is_shown(data: Path) -> None:
    run("apply", "support.toml")
    Path("support.toml").write_text(CALMER)
    run("apply", "support.toml")
    shown = run("show", "support")
    for part in (
        *("support version 2", "in service", "You help customers, calmly.", "Never promise a refund.", "0.4"),
        *("at most 512", "find_order", "number, language?", "false-promise", "a person approves each policy"),
        "system_prompt, sampling.temperature",
    ):
        assert part in shown, part
    assert "You help customers. " in run("show", "support", "--version", "1")
    assert run("show", "support", "--version", "1", "--toml") == SUPPORT
    assert run("show", "support", "--toml") == CALMER
    assert refusal("show", "nobody") == "no persona nobody"
    assert refusal("show", "support", "--version", "3") == "there is no version 3 of persona support"
    assert refusal("show", "support", "--tenant", "acme") == "no persona support"


def test_what_was_applied_before_comes_back_and_is_another_version(data: Path) -> None:
    run("apply", "support.toml")
    Path("support.toml").write_text(CALMER)
    run("apply", "support.toml")
    Path("support.toml").write_text(run("show", "support", "--version", "1", "--toml"))
    assert "changed: system_prompt, sampling.temperature" in run("apply", "support.toml")
    versions = PersonaVersions(data / "personas").history("default", "support")
    assert [version.number for version in versions] == [3, 2, 1]
    assert versions[0].persona.version == versions[2].persona.version


def test_a_file_and_an_earlier_version_are_held_against_what_is_in_service(data: Path) -> None:
    run("apply", "support.toml")
    Path("draft.toml").write_text(CALMER)
    lines = run("diff", "support", "draft.toml").splitlines()
    assert lines[:2] == ["--- version 1, in service", "+++ draft.toml"]
    assert {"-temperature = 0.6", "+temperature = 0.4"} <= set(lines)
    assert run("diff", "support", "support.toml") == "the same definition as version 1, which is in service\n"
    Path("draft.toml").write_text(f"# a remark\n{SUPPORT}")
    assert run("diff", "support", "./draft.toml").splitlines()[-1] == (
        "written otherwise, and the same definition as version 1, which is in service"
    )
    Path("support.toml").write_text(CALMER)
    run("apply", "support.toml")
    assert "+temperature = 0.6" in run("diff", "support", "1").splitlines()
    assert "8 to 16 digits" in refusal("diff", "support", "latest")


def test_a_damaged_version_is_listed_as_such(data: Path) -> None:
    run("apply", "support.toml")
    (data / "personas" / "default" / "support" / "2.toml").write_text("x = [")
    assert "(2 is damaged)" in run("list")
    (data / "personas" / "default" / "support" / "1.toml").write_text("x = [")
    assert "2: damaged" in run("list")
    assert refusal("show", "support").startswith("version 2 of persona support: not valid TOML")


def test_what_a_file_says_does_not_steer_the_terminal(data: Path) -> None:
    Path("support.toml").write_text('system_prompt = "a \\u001b[31m [red]b[/red]"\nguidelines = "\\u001b[2J"')
    run("apply", "support.toml")
    for command in (("list",), ("show", "support")):
        said = run(*command)
        assert "\x1b" not in said
        assert "[red]b[/red]" in said


def test_a_start_says_where_the_operators_folder_and_what_was_applied_differ(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "support.toml").write_text(SUPPORT)
    settings = Settings(data=data, personas=str(folder), default_persona="support")
    personas = Personas.open(data, settings.personas_folder, "support")
    assert unapplied(settings, personas) == []
    (folder / "support.toml").write_text(CALMER)
    (folder / "new.toml").write_text('system_prompt = ""')
    assert unapplied(settings, personas) == ["new", "support"]
    (folder / "new.toml").write_text("x")
    assert unapplied(settings, personas) == []
    assert unapplied(Settings(data=data, default_persona="support"), personas) == []
