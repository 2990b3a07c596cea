"""A step program driven by hand on the reference interpreter: pages, chunks, several sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.reference import run_graph
from rlx.core.dim import evaluate
from rlx.flow import WeightSource
from rlx.hir import DerivedStep

Chunk = tuple[int, int]
"""Which sequence, and how many of its next tokens."""


class Stepper:
    """Feeds sequences to a step program in any chunks, over pages in a shuffled order."""

    def __init__(self, step: DerivedStep, weights: WeightSource, ids: Sequence[NDArray[Any]], seed: int = 0) -> None:
        self.step, self.weights, self.ids = step, weights, ids
        self.done = [0] * len(ids)
        pages = max(-(-len(row) // step.page_size) for row in ids)
        count = pages * len(ids) + 1
        order = np.random.default_rng(seed).permutation(count)[: pages * len(ids)]
        self.page_table = order.reshape(len(ids), pages).astype(np.int32)
        self.caches: dict[str, NDArray[Any]] = {}
        for name, value in step.graph.inputs:
            if "_cache." in name or name == "state":
                # a page that nobody wrote must not matter, nor a state of another sequence
                sizes = {"N": count, "C": len(ids) + 1}
                self.caches[name] = np.full([evaluate(size, sizes) for size in value.type.shape], 1e3)

    def run(self, chunks: Sequence[Chunk], logit_rows: Sequence[int] | None = None) -> dict[str, NDArray[Any]]:
        """One step; logits of every row unless said otherwise."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        for sequence, count in chunks:
            start = self.done[sequence]
            tokens += self.ids[sequence][start : start + count].tolist()
            positions += range(start, start + count)
            sequences += [sequence] * count
            self.done[sequence] += count
        inputs = {
            "tokens": np.array(tokens, np.int32),
            "positions": np.array(positions, np.int32),
            "sequences": np.array(sequences, np.int32),
            "page_table": self.page_table,
            "logit_rows": np.array(range(len(tokens)) if logit_rows is None else logit_rows, np.int32),
        }
        if "state" in self.caches:
            inputs |= self.as_states(chunks)
        results = run_graph(self.step.graph, {**inputs, **self.caches}, self.weights)
        self.caches = {name: results[name] for name in self.caches}
        return results

    def as_states(self, chunks: Sequence[Chunk]) -> dict[str, NDArray[Any]]:
        """The inputs that name sequences, for a program with states: numbered by their place in the step."""
        order, counts = ([chunk[part] for chunk in chunks] for part in range(2))
        return {
            "sequences": np.repeat(np.arange(len(chunks), dtype=np.int32), counts),
            "page_table": self.page_table[order],
            "bounds": np.cumsum([0, *counts]).astype(np.int32),
            "slots": np.array(order, np.int32) + 1,
        }

    def all_logits(self, schedule: Sequence[Sequence[Chunk]]) -> list[NDArray[Any]]:
        """The logits of each sequence after all steps."""
        rows: list[list[NDArray[Any]]] = [[] for _ in self.ids]
        for chunks in schedule:
            logits = self.run(chunks)["logits"]
            at = 0
            for sequence, count in chunks:
                rows[sequence].append(logits[at : at + count])
                at += count
        return [np.concatenate(parts) for parts in rows]
