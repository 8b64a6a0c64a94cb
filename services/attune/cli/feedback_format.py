"""Shapes of feedback files; docs/feedback-files.md."""

from enum import StrEnum


class Format(StrEnum):
    """What a line holds."""

    ATTUNE = "attune"
    HH = "hh"
    ULTRAFEEDBACK = "ultrafeedback"
    OPENAI_STORED = "openai-stored"
