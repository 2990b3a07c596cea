"""Weights that lie in several files: each key is looked for in the first source that has it. Next: `weights.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlx.core.type import TensorType
from rlx.flow.weights import WeightSource
from rlx.io.identity import Identity


class JoinedWeights:
    """Several weight sources as one; implements `WeightSource`.

    Args:
        sources: at least one; the first is asked for a key that none has.
    """

    def __init__(self, sources: Sequence[WeightSource]) -> None:
        self._sources = tuple(sources)

    def _of(self, key: str) -> WeightSource:
        return next((source for source in self._sources if key in source), self._sources[0])

    def type_of(self, key: str) -> TensorType:
        """See `WeightSource.type_of`."""
        return self._of(key).type_of(key)

    def __contains__(self, key: object) -> bool:
        return any(key in source for source in self._sources)

    def keys(self) -> Iterable[str]:
        """Every key."""
        return [key for source in self._sources for key in source.keys()]  # noqa: SIM118

    def raw(self, key: str) -> NDArray[np.uint8]:
        """See `WeightSource.raw`."""
        return self._of(key).raw(key)

    def release(self, key: str) -> None:
        """See `WeightSource.release`."""
        self._of(key).release(key)

    def describe(self, key: str) -> str:
        """Where a weight is looked for, for a message."""
        return self._of(key).describe(key)

    def identity(self) -> Identity | None:
        """That of all sources together; None if one of them has none."""
        found = [source.identity() for source in self._sources]
        known = [identity for identity in found if identity is not None]
        if len(known) < len(found):
            return None
        return Identity(hashlib.sha256("\n".join(i.digest for i in known).encode()).hexdigest(), known[0].name)
