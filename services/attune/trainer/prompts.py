"""Regression prompts in files that an operator may change while the trainer runs."""

import logging
from collections.abc import Sequence
from pathlib import Path

from attune.errors import InvalidInput
from attune.personas import Personas
from attune.trainer.evaluate import RegressionPrompt, read_regression_prompts

logger = logging.getLogger(__name__)


class PromptFiles:
    """The prompts of some files. What cannot be read any more is reported, and what was read last goes on."""

    def __init__(self, files: Sequence[Path], personas: Personas) -> None:
        """Raises InvalidInput with file and line."""
        self._files = files
        self._personas = personas
        self._seen = self._stamps()
        self._prompts = self._read()

    def prompts(self) -> Sequence[RegressionPrompt]:
        """As the files are now."""
        stamps = self._stamps()
        if stamps != self._seen:
            try:
                self._prompts, self._seen = self._read(), stamps
            except InvalidInput as error:
                logger.error("prompts unreadable; the last good ones go on", extra={"reason": error.message})
        return self._prompts

    def _read(self) -> list[RegressionPrompt]:
        names = {persona.name for persona in self._personas}
        return [prompt for file in self._files for prompt in read_regression_prompts(file, names)]

    def _stamps(self) -> list[tuple[int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
