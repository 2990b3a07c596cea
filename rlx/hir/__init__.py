"""Passes over block-level graphs, one per file, pure functions. Read `derive_step.py` first."""

from rlx.hir.derive_packed import derive_packed
from rlx.hir.derive_step import DerivedStep, LayerCache, derive_step
from rlx.hir.simplify import simplify

__all__ = ["DerivedStep", "LayerCache", "derive_packed", "derive_step", "simplify"]
