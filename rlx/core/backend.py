"""What the compiler asks of a backend: which ops it has kernels for, and how a node becomes a kernel call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rlx.core.dim import Size
from rlx.core.dtype import DType
from rlx.core.graph import Node


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """How a node is run: the kernel variant, its static parameters, its scalar arguments and its parallel extent.

    `layouts` names the packing of weight operands by position; `in_place` maps an output to the input whose memory it
    takes over.
    """

    variant: str
    config: Mapping[str, int | float | str | bool]
    sizes: tuple[Size, ...]
    units: Size
    layouts: Mapping[int, str] = field(default_factory=dict[int, str])
    in_place: Mapping[int, int] = field(default_factory=dict[int, int])


class Backend(Protocol):
    """A target of the compiler."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def why_not(self, node: Node) -> str | None:
        """None if the backend runs the node as it is; else the reason it does not."""
        ...

    def plan(self, node: Node) -> KernelPlan:
        """How the node is run.

        Raises:
            UnsupportedOpError: it is not.
        """
        ...

    def quantizes(self, weight: DType) -> bool:
        """Whether a product with such a weight runs faster on quantised activations."""
        ...
