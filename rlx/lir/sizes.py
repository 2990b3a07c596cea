"""Many symbolic sizes evaluated at once: a matrix of coefficients times the values of the monomials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rlx.core.dim import Dim, Monomial, Size


class SizeTable:
    """A list of sizes that share their monomials."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        monomials: dict[Monomial, int] = {(): 0}
        entries: list[tuple[int, int, int]] = []
        for row, size in enumerate(sizes):
            if isinstance(size, Dim):
                entries += [(row, monomials.setdefault(m, len(monomials)), c) for m, c in size.terms]
            else:
                entries.append((row, 0, size))
        self.monomials = tuple(monomials)
        self.coefficients = np.zeros((len(sizes), len(monomials)), np.int64)
        for row, column, coefficient in entries:
            self.coefficients[row, column] = coefficient

    def evaluate(self, dims: Mapping[str, int]) -> NDArray[np.int64]:
        """The value of every size, int64."""
        values = np.ones(len(self.monomials), np.int64)
        for index, monomial in enumerate(self.monomials):
            for symbol in monomial:
                values[index] *= dims[symbol.name]
        return self.coefficients @ values
