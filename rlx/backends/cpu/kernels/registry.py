"""`@kernel("op", "variant", when=...)`: the table of CPU kernels.

A kernel is a predicate that gives the reason it cannot take a node (None if it can), a plan (static parameters, sizes,
units) and a builder that emits its body. The first kernel of an op whose predicate passes is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from rlx.backends.cpu.emit import I64, PTR, Emit, Val
from rlx.backends.cpu.target import Target
from rlx.core.backend import KernelPlan
from rlx.core.graph import Node

Setting: TypeAlias = int | float | str | bool


@dataclass(slots=True)
class Body:
    """The frame of a kernel: its buffers and sizes, the range of units of this call, and the fault word."""

    e: Emit
    buffers: Val
    sizes: Val
    begin: Val
    end: Val
    fault: Val

    def buffer(self, index: int) -> Val:
        """The address of a buffer."""
        return self.e.load(self.buffers, PTR, index)

    def size(self, index: int) -> Val:
        """A scalar argument (i64)."""
        return self.e.load(self.sizes, I64, index)

    def checked_index(self, index: Val, limit: Val) -> Val:
        """`index` (i64) if it is in 0..limit-1; else 0, and the fault word says so."""
        good = (index >= 0) & (index < limit)
        with self.e.when(good ^ self.e.like(1, good)):
            self.e.store(self.e.i64(1), self.fault)
        return self.e.select(good, index, 0)


When: TypeAlias = Callable[[Node, Target], str | None]
Plan: TypeAlias = Callable[[Node, Target], KernelPlan]
Build: TypeAlias = Callable[[Body, Mapping[str, Setting]], None]


@dataclass(frozen=True, slots=True)
class KernelDef:
    """One way to run an op."""

    op: str
    variant: str
    help: str
    when: When
    plan: Plan
    build: Build


KERNELS: dict[str, list[KernelDef]] = {}


def kernel(op: str, variant: str, *, help: str, when: When, plan: Plan) -> Callable[[Build], Build]:
    """Register the decorated builder."""

    def register(build: Build) -> Build:
        KERNELS.setdefault(op, []).append(KernelDef(op, variant, help, when, plan, build))
        return build

    return register


def find(op: str, variant: str) -> KernelDef:
    """The kernel of that name; it was chosen before, so it exists."""
    return next(definition for definition in KERNELS[op] if definition.variant == variant)


def always(node: Node, target: Target) -> str | None:
    """A predicate for kernels that take every node of their op."""
    return None
