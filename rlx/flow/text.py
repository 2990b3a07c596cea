"""A flow as text: a line for each block with its parameters, repeated layers once.

In: a `ModelFlow`. Out: lines, each with the block path of its nodes, in which a layer's number is `*`. It is for
reading; a flow holds functions and does not parse back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, cast

from rlx.flow.blocks.repeat import RepeatStage
from rlx.flow.flow import ModelFlow
from rlx.flow.stage import BlockStage, path_of, source_of

MAX_VALUE = 60


@dataclass(frozen=True, slots=True)
class FlowLine:
    """One line: how deep it is nested, its text, the block path, and the source line of the block."""

    depth: int
    text: str
    path: str
    source: str


def flow_lines(flow: ModelFlow) -> list[FlowLine]:
    """The whole flow, top down."""
    lines = [FlowLine(0, f"input {name}: {type_}", "", "") for name, type_ in flow.inputs.items()]
    for stage in flow.stages:
        lines += _stage(stage, "", 0)
    return lines


def print_flow(flow: ModelFlow) -> str:
    """The lines as text, indented."""
    lines = [f"{'  ' * (line.depth + 1)}{line.text}" for line in flow_lines(flow)]
    return "\n".join([f"flow {flow.name} {{", *lines, "}"]) + "\n"


def _stage(stage: BlockStage, path: str, depth: int) -> Iterator[FlowLine]:
    if isinstance(stage, RepeatStage):
        yield from _repeated(stage, path, depth)
        return
    below = _joined(path, path_of(stage))
    inner = list(_inner(stage))
    words = [type(stage).__name__.removesuffix("Stage"), *_parameters(stage)]
    yield FlowLine(depth, " ".join(words), below, source_of(stage))
    for child in inner:
        yield from _stage(child, below, depth + 1)


def _repeated(stage: RepeatStage, path: str, depth: int) -> Iterator[FlowLine]:
    """Layers that are made alike, apart from their number, are told once."""
    kinds: dict[str, list[int]] = {}
    for index in range(stage.count):
        text = "\n".join(f"{line.depth} {line.text}" for line in _stage(stage.make(index), "", 0))
        kinds.setdefault(text.replace(f".{index}.", ".*."), []).append(index)
    for layers in kinds.values():
        which = "" if len(kinds) == 1 else f": {_ranges(layers)}"
        below = _joined(path, f"{stage.name}.*")
        yield FlowLine(depth, f"repeat {stage.name} × {len(layers)}{which}", below, source_of(stage))
        for line in _stage(stage.make(layers[0]), below, depth + 1):
            text = line.text.replace(f".{layers[0]}.", ".*.")
            yield FlowLine(line.depth, text, line.path, line.source)


def _inner(stage: BlockStage) -> Iterator[BlockStage]:
    """Stages that a stage holds in its fields."""
    if is_dataclass(stage):
        for field in fields(stage):
            value = getattr(stage, field.name)
            yield from (item for item in _items(value) if isinstance(item, BlockStage))


def _parameters(stage: BlockStage) -> Iterator[str]:
    """Fields that differ from their defaults."""
    if not is_dataclass(stage):
        return
    for field in fields(stage):
        value: Any = getattr(stage, field.name)
        if value is None or value == () or callable(value) or isinstance(_items(value)[0], BlockStage):
            continue
        if field.default is not MISSING and value == field.default:
            continue
        yield f"{field.name}={_value(value)}"


def _items(value: Any) -> tuple[Any, ...]:
    """What a tuple holds; anything else is one item."""
    return cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)


def _value(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        inner = (f"{f.name}={_value(getattr(value, f.name))}" for f in fields(value) if _differs(value, f))
        return f"{type(value).__name__}({', '.join(inner)})"
    text = repr(value)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _differs(value: Any, field: Any) -> bool:
    found = getattr(value, field.name)
    return found is not None and (field.default is MISSING or found != field.default)


def _joined(path: str, segment: str) -> str:
    return ".".join(filter(None, (path, segment)))


def _ranges(numbers: list[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3, 5."""
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
