"""Words for the values of enums."""

from attune.chat.words import FINISH_REASONS, IMPLICIT_SIGNALS, ROLES, THUMBS
from attune.v1 import event_pb2


def test_a_value_is_called_by_its_name_without_the_kind() -> None:
    assert ROLES["assistant"] == event_pb2.ROLE_ASSISTANT
    assert FINISH_REASONS.of[event_pb2.FINISH_REASON_TOOL_CALLS] == "tool_calls"
    assert IMPLICIT_SIGNALS["regenerated"] == event_pb2.IMPLICIT_SIGNAL_REGENERATED


def test_what_is_unspecified_has_no_word() -> None:
    assert set(THUMBS) == {"up", "down"}
    assert event_pb2.THUMB_UNSPECIFIED not in THUMBS.of
