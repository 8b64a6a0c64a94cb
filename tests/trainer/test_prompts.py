"""Regression prompts that an operator changes while the trainer runs."""

import json
import os
from pathlib import Path

import pytest
from tests.persona_files import apply

from attune.errors import InvalidInput
from attune.personas import Personas, PersonaVersions
from attune.trainer.prompts import PromptFiles


def line(persona: str, answer: str = "x") -> str:
    messages = [{"role": "user", "content": "q"}]
    return json.dumps({"skill": "facts", "persona": persona, "messages": messages, "answer": answer}) + "\n"


def test_prompts_are_read_again_when_their_file_changes_and_a_bad_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line("concierge"))
    apply(tmp_path, "concierge", 'system_prompt = ""')
    seconds = 0.0
    personas = Personas(PersonaVersions(tmp_path / "personas"), "concierge", clock=lambda: seconds)
    files = PromptFiles([file], personas)
    first = files.prompts()
    assert [prompt.persona for prompt in first] == ["concierge"]
    assert files.prompts() is first

    file.write_text(line("concierge") + line("guide"))
    assert files.prompts() is first
    (said,) = [record.reason for record in caplog.records if record.levelname == "ERROR"]
    assert said == f"{file}:2: no persona guide"

    apply(tmp_path, "guide", 'system_prompt = ""')
    seconds += 1
    assert [prompt.persona for prompt in files.prompts()] == ["concierge", "guide"]

    os.unlink(file)
    assert len(files.prompts()) == 2
    with pytest.raises(InvalidInput, match="cannot be read"):
        PromptFiles([file], personas)
