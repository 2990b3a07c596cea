"""What a command takes, declared without the library that parses it: typer and what it imports cost 0.1 s of a start.

In: `option(...)` and `argument(...)` in the annotations of a command, with what `typer.Option` and `typer.Argument`
take. Out, of two readers: `call_plainly` runs the command if every word is one that can be read in one way only;
`with_typer` gives the same command as typer declares it, for everything else: help, mistakes, abbreviations.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_origin, get_type_hints

_INTEGER = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


@dataclass(frozen=True, slots=True)
class Declared:
    """An option (`is_option`) or an argument: the names it is given by, and the settings for typer."""

    is_option: bool
    names: tuple[str, ...]
    settings: Mapping[str, Any]


def option(*names: str, **settings: Any) -> Declared:
    """As `typer.Option`."""
    return Declared(True, names, settings)


def argument(**settings: Any) -> Declared:
    """As `typer.Argument`."""
    return Declared(False, (), settings)


class _NotPlain(Exception):
    """The words need a real parser."""


def call_plainly(command: Callable[..., None], words: Sequence[str]) -> bool:
    """Run a command if its words are plain; gives whether it was run.

    Plain are options by their whole names with values of the right type, flags, and arguments without a dash.
    """
    try:
        values = _plain_values(command, words)
    except _NotPlain:
        return False
    command(**values)
    return True


def with_typer(command: Callable[..., None]) -> Callable[..., None]:
    """The command with typer's own declarations in its annotations."""
    import typer

    @wraps(command)
    def declared(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    hints = get_type_hints(command, include_extras=True)
    for name, hint in hints.items():
        for mark in _marks(hint):
            make = typer.Option if mark.is_option else typer.Argument
            hints[name] = Annotated[get_args(hint)[0], make(*mark.names, **mark.settings)]
    signature = inspect.signature(command)
    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
    declared.__annotations__ = hints
    setattr(declared, "__signature__", signature.replace(parameters=parameters))  # noqa: B010
    return declared


def _marks(hint: Any) -> list[Declared]:
    return [mark for mark in get_args(hint)[1:] if isinstance(mark, Declared)] if get_origin(hint) is Annotated else []


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a word goes: the parameter, the type of its values, whether it takes several."""

    parameter: str
    type: type
    many: bool


def _plain_values(command: Callable[..., None], words: Sequence[str]) -> dict[str, Any]:
    options, arguments = _slots(command)
    values: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            if not arguments:
                raise _NotPlain
            slot, text = arguments.pop(0), word
        else:
            name, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
            slot = options.get(name)
            if slot is None or (equals and slot.type is bool):
                raise _NotPlain
            if slot.type is bool:
                values[slot.parameter] = True
                continue
            if not equals:
                text = left.pop(0) if left else "-"
            if text.startswith("-"):
                raise _NotPlain
        value = _value(slot.type, text)
        if slot.many:
            values.setdefault(slot.parameter, []).append(value)
        else:
            values[slot.parameter] = value
    return values


def _slots(command: Callable[..., None]) -> tuple[dict[str, _Slot], list[_Slot]]:
    options: dict[str, _Slot] = {}
    arguments: list[_Slot] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        marks = _marks(hint)
        if len(marks) != 1 or parameter.default is inspect.Parameter.empty:
            raise _NotPlain
        slot = _slot(name, get_args(hint)[0])
        if not marks[0].is_option:
            arguments.append(slot)
        names = marks[0].names or ("--" + name.replace("_", "-"),)
        if marks[0].is_option:
            options.update(dict.fromkeys(names, slot))
    return options, arguments


def _slot(name: str, hint: Any) -> _Slot:
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    many = get_origin(kinds[0]) is list
    kind = get_args(kinds[0])[0] if many else kinds[0]
    if len(kinds) != 1 or kind not in (str, int, float, bool):
        raise _NotPlain
    return _Slot(name, kind, many)


def _value(kind: type, text: str) -> str | int | float:
    if kind is str:
        return text
    if kind is int and _INTEGER.fullmatch(text):
        return int(text)
    if kind is float and _NUMBER.fullmatch(text):
        return float(text)
    raise _NotPlain
