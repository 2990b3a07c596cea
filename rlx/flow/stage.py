"""What a block is: anything with `emit`. Next: `blocks/`, one file per block."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue


@runtime_checkable
class BlockStage(Protocol):
    """One stage of the assembly line.

    A stage may have an attribute `path`: the segment it adds to the block path of the nodes it emits (`self_attn`).
    """

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue | None:
        """Add the stage's ops; gives the value that flows on, or None to let the input flow on."""
        ...


def path_of(stage: BlockStage) -> str:
    """The segment of the block path that a stage adds; empty for none."""
    path = getattr(stage, "path", "")
    return path if isinstance(path, str) else ""


def source_of(stage: BlockStage) -> str:
    """`file.py:line` of the code that emits a stage's nodes."""
    function = getattr(stage, "source_function", None) or getattr(type(stage), "emit", None)
    return code_location(function) if isinstance(function, FunctionType) else type(stage).__name__


@cache
def code_location(function: Callable[..., Any]) -> str:
    """`file.py:line` where a function starts."""
    code = getattr(function, "__code__", None)
    if code is None:
        return getattr(function, "__name__", "unknown")
    return f"{code.co_filename.replace(chr(92), '/').rsplit('/', 1)[-1]}:{code.co_firstlineno}"


def segment_of_key(key: str) -> str:
    """The block path segment a key suggests: `input_layernorm` for `layers.0.input_layernorm.weight`."""
    parts = key.split(".")
    return parts[-2] if len(parts) > 1 else key
