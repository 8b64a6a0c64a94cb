"""JSON as the registry writes it, and reads it with suspicion."""

import json
import math
from typing import Any

from attune.errors import DataLoss, InvalidInput


def canonical_json(value: Any) -> bytes:
    """The one way to write a value: sorted keys, no spaces, ASCII. Raises InvalidInput for NaN and infinity."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"cannot be written as JSON: {error}") from None


class Fields:
    """The fields of a JSON object, each read as the type that it must have; anything else is DataLoss."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise DataLoss(f"{where} is no JSON object")
        self.values: dict[str, Any] = values
        self._where = where

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Fields":
        try:
            return cls(json.loads(content, parse_constant=_refuse_constant), where)
        except (ValueError, RecursionError):
            raise DataLoss(f"{where} is not valid JSON") from None

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def boolean(self, name: str) -> bool:
        value = self._get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def integer(self, name: str) -> int:
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise self._wrong(name, "a whole number")
        return value

    def number(self, name: str) -> float:
        return self._number(self._get(name), name)

    def numbers(self, name: str) -> tuple[float, ...]:
        return tuple(self._number(value, name) for value in self.list(name))

    def integers(self, name: str) -> tuple[int, ...]:
        values = self.list(name)
        if not all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 for value in values):
            raise self._wrong(name, "a list of whole numbers")
        return tuple(values)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.list(name)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(name, "a list of texts")
        return tuple(values)

    def list(self, name: str) -> list[Any]:
        value = self._get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def object(self, name: str) -> "Fields":
        return Fields(self._get(name), f"{self._where}: {name}")

    def objects(self, name: str) -> tuple["Fields", ...]:
        return tuple(Fields(value, f"{self._where}: {name}") for value in self.list(name))

    def _get(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise DataLoss(f"{self._where}: {name} is missing") from None

    def _number(self, value: Any, name: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e300:
            raise self._wrong(name, "a number")
        return float(value)

    def _wrong(self, name: str, wanted: str) -> DataLoss:
        return DataLoss(f"{self._where}: {name} is not {wanted}")


def finite(value: float) -> float | None:
    """The number as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
