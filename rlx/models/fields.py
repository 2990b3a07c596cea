"""Reading a model's configuration: typed, with one message for everything that is missing or malformed.

In: GGUF metadata or a parsed config.json. Out: numbers and strings. Next: `llama.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rlx.errors import UnsupportedModelError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fields:
    """A configuration and the file it is from, which remembers what was asked of it.

    Attributes:
        values: the fields.
        where: the file, for messages.
        prefix: stands before every name (GGUF: `llama.`).
        defaults: what an absent field is taken for.
        read: the names that were asked for.
    """

    values: Mapping[str, object]
    where: str
    prefix: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    read: set[str] = field(default_factory=set[str])

    def get(self, name: str) -> object:
        """The raw value, or its default; None if there is neither."""
        self.read.add(name)
        value = self.values.get(self.prefix + name)
        return self.defaults.get(name) if value is None and self.prefix + name not in self.values else value

    def refuse_unread(self, harmless: Callable[[str], bool], neutral: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse every field that nobody asked for: it might ask for another computation.

        Args:
            harmless: whether a field carries no computation.
            neutral: fields with the values that change nothing.

        Raises:
            UnsupportedModelError: naming the field and its value.
        """
        for full in self.values:
            name = full.removeprefix(self.prefix)
            if not full.startswith(self.prefix) or name in self.read or harmless(name):
                continue
            if name not in neutral:
                self.refuse(
                    name,
                    "only fields that RLX knows the meaning of",
                    fix="if the field changes nothing in the computation, remove it from the file",
                )
            if not any(_same(self.values[full], value) for value in neutral[name]):
                expected = " or ".join("absent" if value is None else repr(value) for value in neutral[name])
                self.refuse(name, expected)

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

    def for_layers(self, name: str, count: int, minimum: int = 1) -> tuple[int, ...]:
        """`count` whole numbers of at least `minimum`, from a list of GGUF metadata or from one number for all."""
        value = self.get(name)
        if not isinstance(value, np.ndarray):
            return (self.integer(name, minimum=minimum),) * count
        numbers = cast("NDArray[Any]", value)
        if numbers.shape != (count,) or numbers.dtype.kind not in "biu" or int(numbers.min()) < minimum:
            self.refuse(name, f"{count} whole numbers of at least {minimum}, one for each layer")
        return tuple(int(number) for number in numbers)

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

    def optional_number(self, name: str) -> float | None:
        """A positive number; None where the field is absent, null or 0."""
        return self.number(name) if self.get(name) not in (None, 0) else None

    def choice(self, name: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """What a word stands for."""
        word = self.text(name, default or "")
        if word not in choices:
            self.refuse(name, " or ".join(choices))
        return choices[word]

    def words(self, name: str, count: int) -> tuple[str, ...] | None:
        """A list of `count` strings; None if the field is absent."""
        return self._list(name, count, str, "words")

    def numbers(self, name: str, count: int) -> tuple[int, ...] | None:
        """A list of `count` whole numbers; None if the field is absent."""
        return self._list(name, count, int, "whole numbers")

    def _list(self, name: str, count: int, kind: type[T], what: str) -> tuple[T, ...] | None:
        value = self.get(name)
        if value is None:
            return None
        items = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
        found = tuple(item for item in items if isinstance(item, kind))
        if len(items) != count or len(found) != count:
            self.refuse(name, f"{count} {what}, one for each layer")
        return found

    def indices(self, name: str) -> frozenset[int]:
        """A list of whole numbers; empty if the field is absent."""
        value = self.get(name)
        items = cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
        found = frozenset(item for item in items if isinstance(item, int))
        if value is not None and (not isinstance(value, list | tuple) or len(found) != len(items)):
            self.refuse(name, "a list of different whole numbers")
        return found

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


def _same(value: object, neutral: object) -> bool:
    """Equal, where a truth value is no number."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
