"""What the values of protobuf's enums are called in JSON, files, tables and metrics: their own names, without the kind.

`ROLES["user"]` is the number, `ROLES.of[number]` the word. What is unspecified has no word.
"""

from typing import TYPE_CHECKING, Generic, TypeVar

from attune.v1 import event_pb2

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

_Number = TypeVar("_Number", bound=int)


class Words(dict[str, _Number], Generic[_Number]):
    """The numbers of one enum by their words, and the words by their numbers."""

    def __init__(self, enum: "_EnumTypeWrapper[_Number]") -> None:
        kind = enum.keys()[0].removesuffix("UNSPECIFIED")  # the first is the one with the number 0
        super().__init__({name.removeprefix(kind).lower(): number for name, number in enum.items() if number})
        self.of: dict[_Number, str] = {number: word for word, number in self.items()}


ROLES = Words(event_pb2.Role)
SOURCES = Words(event_pb2.Source)
FINISH_REASONS = Words(event_pb2.FinishReason)
AUTHORS = Words(event_pb2.Author)
THUMBS = Words(event_pb2.Thumb)
IMPLICIT_SIGNALS = Words(event_pb2.ImplicitSignal)
