"""Reading a model's configuration: typed, with one message for everything that is missing or malformed.

In: GGUF metadata or a parsed config.json. Out: numbers and strings. Next: `llama.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from rlx.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Fields:
    """A configuration and the file it is from; `prefix` stands before every name (GGUF: `llama.`)."""

    values: Mapping[str, object]
    where: str
    prefix: str = ""

    def get(self, name: str) -> object:
        """The raw value; None if it is not there."""
        return self.values.get(self.prefix + name)

    def refuse(self, name: str, expected: object, fix: str | None = None) -> NoReturn:
        """Raise UnsupportedModelError with the field and its value."""
        value = self.get(name)
        found = f"{self.prefix}{name} = {value!r}" if value is not None else f"no {self.prefix}{name}"
        raise UnsupportedModelError(
            f"RLX cannot use the value of {self.prefix}{name}",
            where=self.where,
            found=found,
            expected=expected,
            fix=fix,
        )

    def integer(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least `minimum`; a list (one for each layer) counts if all its numbers are equal."""
        value = self.get(name)
        if isinstance(value, np.ndarray):
            distinct: list[object] = np.unique(cast("NDArray[Any]", value)).tolist()
            value = distinct[0] if len(distinct) == 1 else cast(object, value)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.refuse(name, f"a whole number of at least {minimum}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            self.refuse(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A truth value."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            self.refuse(name, "a string")
        return value

    def table(self, name: str) -> dict[str, object]:
        """A nested table as a new dict; empty if it is not there."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.refuse(name, "a table")
        return dict(cast(Mapping[str, object], value))
