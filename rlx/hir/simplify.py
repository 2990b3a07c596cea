"""Remove what no output needs, compute equal nodes once. In: a graph. Out: an equal one. Next: `derive_step.py`."""

from __future__ import annotations

from rlx.core.graph import Graph
from rlx.core.rewrite import eliminate_dead, merge_common


def simplify(graph: Graph) -> Graph:
    """Dead-code elimination, then common-subexpression elimination; linear in the number of nodes."""
    return merge_common(eliminate_dead(graph))
