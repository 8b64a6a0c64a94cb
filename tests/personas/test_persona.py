"""What a persona's text may say, and what is told of one that may not."""

import json
from pathlib import Path

import pytest

from attune.chat.tools import function_tools
from attune.personas import PersonaError, load_personas
from attune.personas.persona import MAX_FILE_BYTES, Persona, read_persona, read_persona_file, read_personas

WHOLE = """
system_prompt = "You help."
guidelines = "# Be right"
feedback_tags = ["wrong", "rude"]
approval = "person"

[sampling]
temperature = 0.6
max_tokens = 128

[limits]
max_tokens = 512
min_temperature = 0.1
max_temperature = 1

[[tools]]
name = "find_order"
description = "Where an order is."
[tools.parameters]
type = "object"
required = ["number"]
properties.number = { type = "string", maxLength = 20 }

[[tools]]
name = "ask_a_colleague"
"""


def read(text: str, name: str = "support", tenant: str | None = None) -> Persona:
    return read_persona(text, "file.toml", name=name, tenant=tenant)


def complaint(text: str, **options: str) -> str:
    with pytest.raises(PersonaError) as caught:
        read(text, **options)
    return caught.value.message


def test_a_text_says_everything_of_a_persona() -> None:
    persona = read(WHOLE)
    assert (persona.name, persona.tenant, persona.system_prompt) == ("support", "default", "You help.")
    assert (persona.sampling.temperature, persona.sampling.max_tokens, persona.sampling.top_p) == (0.6, 128, 1)
    assert (persona.limits.max_tokens, persona.limits.min_temperature, persona.limits.max_temperature) == (512, 0.1, 1)
    assert (persona.feedback_tags, persona.approval) == (("wrong", "rude"), "person")
    assert len(persona.guideline_version) == 16
    order, colleague = persona.offered_tools
    assert (order.name, order.description) == ("find_order", "Where an order is.")
    assert json.loads(order.parameters_json)["properties"] == {"number": {"type": "string", "maxLength": 20}}
    assert colleague.parameters_json == ""
    assert [tool["function"]["name"] for tool in function_tools(persona.offered_tools)] == [order.name, colleague.name]


def test_a_version_is_of_what_is_meant_and_not_of_how_it_is_written() -> None:
    persona = read(WHOLE)
    otherwise = "# a comment\n" + WHOLE.replace('approval = "person"', 'approval = "person"\nname = "support"')
    assert read(otherwise.replace("max_tokens = 128", "max_tokens = 128\ntop_p = 1.0")).version == persona.version
    assert read(WHOLE.replace("0.6", "0.5")).version != persona.version
    assert read(WHOLE, name="other").version != persona.version
    assert read(WHOLE, tenant="acme").version != persona.version
    assert read(WHOLE.replace("maxLength = 20", "maxLength = 21")).version != persona.version


def test_a_guideline_version_is_of_the_guidelines_alone() -> None:
    persona = read(WHOLE)
    assert read(WHOLE.replace("You help.", "You hinder.")).guideline_version == persona.guideline_version
    assert read(WHOLE.replace("# Be right", "# Be kind")).guideline_version != persona.guideline_version
    assert read('system_prompt = ""').guideline_version == ""


PROMPT = 'system_prompt = ""\n'
REFUSED = {
    "no TOML": ("x = [", "file.toml: not valid TOML: Invalid value (at end of document)"),
    "nested without end": ("x = " + "[" * 5000, "file.toml: not valid TOML: nested too deep"),
    "no prompt": ("", "file.toml: system_prompt: field required"),
    "unknown key": (f"{PROMPT}colour = 'red'", "file.toml: colour: no such key"),
    "unknown key within": (f"{PROMPT}[limits]\ntop_p = 1", "file.toml: limits.top_p: no such key"),
    "prompt too long": (f'system_prompt = "{"x" * 32769}"', "system_prompt: string should have at most 32768 char"),
    "guidelines too long": (f'{PROMPT}guidelines = "{"x" * 65537}"', "guidelines: string should have at most 65536"),
    "text for a number": (
        f"{PROMPT}sampling.temperature = '1'",
        "sampling.temperature: input should be a valid number",
    ),
    "not a number": (f"{PROMPT}sampling.temperature = nan", "sampling.temperature: input should be"),
    "temperature": (
        f"{PROMPT}sampling.temperature = 2.1",
        "sampling.temperature: input should be less than or equal to 2",
    ),
    "limit of no tokens": (
        f"{PROMPT}limits.max_tokens = 0",
        "limits.max_tokens: input should be greater than or equal",
    ),
    "limits upside down": (
        f"{PROMPT}[limits]\nmin_temperature = 1\nmax_temperature = 0.5",
        "limits.min_temperature is 1; limits.max_temperature is 0.5, which is less",
    ),
    "default over its limit": (
        f"{PROMPT}limits.max_tokens = 100",
        "file.toml: sampling.max_tokens is 256; limits.max_tokens allows 100",
    ),
    "default outside its limits": (
        f"{PROMPT}limits.max_temperature = 0.5",
        "sampling.temperature is 0.8; limits allow 0 to 0.5",
    ),
    "empty tag": (f'{PROMPT}feedback_tags = ["a", ""]', "feedback_tags.1: a tag has 1 to 64 printable characters"),
    "too many tags": (
        f"{PROMPT}feedback_tags = {[str(n) for n in range(65)]}",
        "feedback_tags: tuple should have at most",
    ),
    "approval": (f'{PROMPT}approval = "nobody"', "approval: input should be 'gate' or 'person'"),
    "tool without a name": (f"{PROMPT}[[tools]]\ndescription = 'x'", "tools.0.name: field required"),
    "tool's name": (f"{PROMPT}[[tools]]\nname = 'a b'", "tools[0].name must be 1 to 64 letters"),
    "one tool twice": (
        f"{PROMPT}[[tools]]\nname = 'a'\n[[tools]]\nname = 'a'",
        "tools[1] has the name of another tool",
    ),
    "too many tools": (
        PROMPT + "".join(f"[[tools]]\nname = 't{n}'\n" for n in range(33)),
        "tools: tuple should have at",
    ),
    "tool's pattern": (
        f"{PROMPT}[[tools]]\nname = 'a'\nparameters.properties.x.pattern = 'y'",
        "tools[0].parameters has a pattern; that is not taken",
    ),
    "tool of no object": (
        f"{PROMPT}[[tools]]\nname = 'a'\nparameters.type = 'string'",
        "tools[0].parameters must describe",
    ),
    "tool with a date": (
        f"{PROMPT}[[tools]]\nname = 'a'\nparameters.default = 2026-01-01",
        "tools[0].parameters holds what JSON has no word for",
    ),
    "tool that is deep": (
        f"{PROMPT}[[tools]]\nname = 'a'\nparameters.{'.'.join('x' * 400)} = 1",
        "tools[0].parameters is nested deeper than 16",
    ),
    "tool that is large": (
        f"{PROMPT}[[tools]]\nname = 'a'\nparameters.description = '{'x' * 8200}'",
        "tools[0].parameters has 82",
    ),
    "name": (f'{PROMPT}name = "../up"', "file.toml: name: it must be 1 to 63 lower-case letters"),
    "tenant": (f'{PROMPT}tenant = "A"', "file.toml: tenant: it must be 1 to 63 lower-case letters"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_is_wrong_is_told_with_its_key_and_limit(which: str) -> None:
    text, said = REFUSED[which]
    message = complaint(text)
    assert message.startswith("file.toml: ")
    assert said in message


def test_a_problem_is_told_without_what_was_written() -> None:
    for text in ("api_key = 5\nsystem_prompt = 7", f"{PROMPT}sampling.temperature = 's3cret'"):
        assert "s3cret" not in complaint(text)
        assert "7" not in complaint(text)


def test_another_tenants_file_is_not_taken_for_ones_own() -> None:
    text = f'{PROMPT}tenant = "acme"'
    assert read(text).tenant == read(text, tenant="acme").tenant == "acme"
    assert complaint(text, tenant="other") == "file.toml: tenant: it belongs to another tenant than other"


def test_files_are_bounded_and_read_as_text(tmp_path: Path) -> None:
    for content, said in (
        (b'system_prompt = "\xff"', "cannot be read: not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), f"has more than {MAX_FILE_BYTES} bytes, which is the limit"),
    ):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(PersonaError) as caught:
            read_persona_file(tmp_path / "bad.toml")
        assert caught.value.message == f"{tmp_path / 'bad.toml'}: {said}"
    with pytest.raises(PersonaError, match="cannot be read: No such file"):
        read_persona_file(tmp_path / "gone.toml")


def test_a_folder_has_one_file_for_each_persona(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="no persona here"):
        read_personas(tmp_path)
    (tmp_path / "a.toml").write_text(PROMPT)
    (tmp_path / "b.toml").write_text(f'{PROMPT}tenant = "acme"\nname = "a"')
    assert [persona.label for persona, _ in read_personas(tmp_path)] == ["a", "acme/a"]
    assert list(load_personas(tmp_path)) == ["a"]
    (tmp_path / "c.toml").write_text(f'{PROMPT}name = "a"')
    with pytest.raises(PersonaError, match=r"c\.toml: name: another file is persona a already"):
        read_personas(tmp_path)
