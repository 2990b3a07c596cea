"""`CpuBackend`: which kernel runs a node on which target."""

from __future__ import annotations

from dataclasses import dataclass

from rlx.backends.cpu import kernels
from rlx.backends.cpu.kernels.formats import FORMATS
from rlx.backends.cpu.kernels.registry import KERNELS
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.dtype import DType, bf16
from rlx.core.graph import Node
from rlx.errors import UnsupportedOpError

_ = kernels.FAMILIES  # importing them fills the table


@dataclass(frozen=True, slots=True)
class CpuBackend:
    """Kernels for one target."""

    target: Target
    name: str = "cpu"

    def why_not(self, node: Node) -> str | None:
        """None if a kernel takes the node; else every kernel's reason."""
        definitions = KERNELS.get(node.op, [])
        if not definitions:
            return f"there is no kernel for {node.op}"
        reasons: list[str] = []
        for definition in definitions:
            reason = definition.when(node, self.target)
            if reason is None:
                return None
            reasons.append(f"{definition.op}.{definition.variant}: {reason}")
        return "; ".join(reasons)

    def plan(self, node: Node) -> KernelPlan:
        """The plan of the first kernel that takes the node.

        Raises:
            UnsupportedOpError: none does.
        """
        for definition in KERNELS.get(node.op, []):
            if definition.when(node, self.target) is None:
                return definition.plan(node, self.target)
        raise UnsupportedOpError(
            f"the cpu backend cannot run {node.op}", where=str(node.location), found=self.why_not(node)
        )

    def quantizes(self, weight: DType) -> bool:
        """True for formats with an integer form, and bfloat16 where the target multiplies it."""
        if weight == bf16:
            return self.target.bf16
        return weight.name in FORMATS and FORMATS[weight.name].has_integers
