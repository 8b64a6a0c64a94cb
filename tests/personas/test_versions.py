"""Personas in a data folder: numbered, never changed, and what services see of them."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from attune.errors import InvalidInput, NotFound
from attune.personas import PersonaError, Personas, PersonaVersions
from attune.personas.persona import read_persona
from tests.persona_files import apply, stored

DEMO = {"concierge": 'system_prompt = "one"', "tutor": 'system_prompt = "patient"'}


class Clock:
    """Seconds that pass when told to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, text in DEMO.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def problems() -> float | None:
    return REGISTRY.get_sample_value("attune_persona_problems")


def open_with(data: Path, clock: Callable[[], float]) -> Personas:
    return Personas(PersonaVersions(data / "personas"), "concierge", clock)


def test_a_new_data_folder_begins_with_the_source_and_then_leaves_it_alone(tmp_path: Path, source: Path) -> None:
    data = tmp_path / "data"
    personas = Personas.open(data, source, "concierge")
    assert [persona.name for persona in personas] == ["concierge", "tutor"]
    assert (data / "personas" / "default" / "tutor" / "1.toml").read_text() == DEMO["tutor"]

    (source / "tutor.toml").write_text('system_prompt = "otherwise"')
    (source / "third.toml").write_text('system_prompt = ""')
    assert [each.system_prompt for each in Personas.open(data, source, "concierge")] == ["one", "patient"]
    shutil.rmtree(source)
    assert len(list(Personas.open(data, source, "concierge"))) == 2
    assert os.listdir(data) == ["personas"]


def test_a_source_that_cannot_be_used_leaves_nothing(tmp_path: Path, source: Path) -> None:
    data = tmp_path / "data"
    with pytest.raises(NotFound, match=r"default_persona is nobody; .*source has concierge, tutor"):
        Personas.open(data, source, "nobody")
    (source / "zebra.toml").write_text("x")
    with pytest.raises(PersonaError, match=r"zebra\.toml: not valid TOML"):
        Personas.open(data, source, "concierge")
    assert not data.exists()


def test_processes_that_start_together_begin_alike(tmp_path: Path, source: Path) -> None:
    data, seen = tmp_path / "data", []

    def start() -> None:
        seen.append([persona.version for persona in Personas.open(data, source, "concierge")])

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(versions == seen[0] for versions in seen)
    assert PersonaVersions(data / "personas").all() == {("default", "concierge"): [1], ("default", "tutor"): [1]}
    assert os.listdir(data) == ["personas"]


def test_a_version_is_written_once_and_the_same_again_changes_nothing(tmp_path: Path) -> None:
    versions = PersonaVersions(tmp_path)
    persona = read_persona('system_prompt = "one"', "", name="concierge")
    assert [versions.apply(persona, 'system_prompt = "one"')[1] for _ in range(2)] == [True, False]
    again = read_persona('# why\nsystem_prompt = "one"', "", name="concierge")
    version, changed = versions.apply(again, '# why\nsystem_prompt = "one"')
    assert (version.number, version.text, changed) == (1, 'system_prompt = "one"', False)

    other = read_persona('system_prompt = "two"', "", name="concierge")
    assert versions.apply(other, 'system_prompt = "two"')[0].number == 2
    assert versions.apply(persona, 'system_prompt = "one"')[0].number == 3  # back to what was
    assert [each.persona.system_prompt for each in versions.history("default", "concierge")] == ["one", "two", "one"]


def test_versions_are_found_by_number_and_by_digits(tmp_path: Path) -> None:
    for text in ("one", "two", "one"):
        apply(tmp_path, "concierge", f'system_prompt = "{text}"')
    versions = PersonaVersions(tmp_path / "personas")
    one = versions.read("default", "concierge", 1).persona.version
    assert versions.find("default", "concierge", "2").persona.system_prompt == "two"
    assert versions.find("default", "concierge", one).number == 3
    assert versions.find("default", "concierge", one[:8]).number == 3
    for which, error in (("4", NotFound), ("0" * 16, NotFound), ("x", InvalidInput), ("../1", InvalidInput)):
        with pytest.raises(error):
            versions.find("default", "concierge", which)
    for tenant, name in (("default", "nobody"), ("acme", "concierge")):
        with pytest.raises(NotFound):
            versions.current(tenant, name)
    with pytest.raises(InvalidInput):
        versions.current("default", "../concierge")


def test_many_that_apply_at_once_lose_nothing(tmp_path: Path) -> None:
    def apply_some(which: int) -> None:
        for number in range(4):
            apply(tmp_path, "concierge", f'system_prompt = "{which} {number}"')

    threads = [threading.Thread(target=apply_some, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    versions = PersonaVersions(tmp_path / "personas")
    assert versions.numbers("default", "concierge") == list(range(1, 13))
    assert len({each.persona.version for each in versions.history("default", "concierge")}) == 12


def test_what_is_applied_is_seen_within_a_second(tmp_path: Path, clock: Clock) -> None:
    stored(tmp_path, DEMO)
    personas = open_with(tmp_path, clock)
    before = personas.find("default", "")
    apply(tmp_path, "concierge", 'system_prompt = "two"')
    apply(tmp_path, "guide", 'system_prompt = "new"')
    apply(tmp_path, "guide", 'system_prompt = "other"', tenant="acme")
    assert personas.find("default", "concierge") is before
    clock.seconds = 1
    assert personas.find("default", "").system_prompt == "two"
    assert personas.find("default", "guide").system_prompt == "new"
    assert [persona.label for persona in personas] == ["acme/guide", "concierge", "guide", "tutor"]
    assert [persona.name for persona in personas.of("acme")] == ["guide"]
    with pytest.raises(NotFound):
        personas.find("acme", "tutor")


def test_a_damaged_version_is_reported_and_the_last_good_one_goes_on(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    stored(tmp_path, DEMO)
    personas = open_with(tmp_path, clock)
    folder = tmp_path / "personas" / "default" / "concierge"
    whole = 'system_prompt = "two"\n[sampling]\nmax_tokens = 9\n'
    (folder / "2.toml").write_text(whole[:12])
    for _ in range(3):
        clock.seconds += 1
        assert personas.find("default", "").system_prompt == "one"
    assert problems() == 1
    (said,) = [record.reason for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith("version 2 of persona concierge: not valid TOML: Expected '=' after a key")

    (folder / "2.toml").write_text(whole)  # the copy is through
    clock.seconds += 1
    assert personas.find("default", "").sampling.max_tokens == 9
    assert problems() == 0

    (folder / "3.toml").symlink_to("/etc/passwd")
    (folder / "4.toml").write_text('system_prompt = "x"\nname = "tutor"')
    clock.seconds += 1
    assert personas.find("default", "").system_prompt == "two"
    assert open_with(tmp_path, clock).find("default", "").system_prompt == "two"  # a start does as well
    apply(tmp_path, "concierge", 'system_prompt = "mended"')
    clock.seconds += 1
    assert personas.find("default", "").system_prompt == "mended"
    assert (folder / "5.toml").is_file()
    assert problems() == 0


def test_a_persona_whose_files_are_gone_goes_on_until_the_next_start(tmp_path: Path, clock: Clock) -> None:
    stored(tmp_path, DEMO)
    personas = open_with(tmp_path, clock)
    shutil.rmtree(tmp_path / "personas" / "default" / "tutor")
    clock.seconds += 1
    assert personas.find("default", "tutor").system_prompt == "patient"
    assert problems() == 1
    shutil.rmtree(tmp_path / "personas")
    clock.seconds += 1
    assert len(list(personas)) == 2
    stored(tmp_path, {"concierge": DEMO["concierge"]})
    assert [persona.name for persona in open_with(tmp_path, clock)] == ["concierge"]


def test_what_is_no_personas_is_passed_over(tmp_path: Path, clock: Clock) -> None:
    stored(tmp_path, DEMO)
    folder = tmp_path / "personas"
    (folder / ".DS_Store").write_text("")
    (folder / "default" / "Not A Name").mkdir()
    (folder / "default" / "Not A Name" / "1.toml").write_text("")
    (folder / "default" / "empty").mkdir()
    (folder / "default" / "tutor" / "01.toml").write_text("x")
    (folder / "default" / "tutor" / ".draft-2.toml.7.a").write_text("x")
    assert [persona.name for persona in open_with(tmp_path, clock)] == ["concierge", "tutor"]
    assert problems() == 0


def test_a_version_that_is_known_is_not_read_again(tmp_path: Path, clock: Clock) -> None:
    stored(tmp_path, DEMO)
    personas = open_with(tmp_path, clock)
    (tmp_path / "personas" / "default" / "tutor" / "1.toml").write_text("changed by hand, which nobody should")
    clock.seconds += 1
    assert personas.find("default", "tutor").system_prompt == "patient"
    assert problems() == 0
