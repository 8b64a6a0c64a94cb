"""Bounds on ids and labels that callers send along."""

from collections.abc import Mapping

from attune.errors import InvalidInput

MAX_ID_CHARACTERS = 128
MAX_END_USER_CHARACTERS = 256
MAX_METADATA_ENTRIES = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_VALUE_CHARACTERS = 256


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raises InvalidInput for too many entries, or too long ones."""
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise InvalidInput(
            f"metadata has {len(metadata)} entries; at most {MAX_METADATA_ENTRIES} are taken", field="metadata"
        )
    for key, value in metadata.items():
        check_length(key, MAX_METADATA_KEY_CHARACTERS, "metadata", part="a key")
        check_length(value, MAX_METADATA_VALUE_CHARACTERS, "metadata", part="a value")


def check_length(text: str, limit: int, name: str, *, part: str = "") -> None:
    """Raises InvalidInput when a text is longer than its limit."""
    if len(text) > limit:
        what = f"{part} of {name}" if part else name
        raise InvalidInput(f"{what} has {len(text)} characters; at most {limit} are taken", field=name)
