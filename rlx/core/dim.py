"""Symbolic sizes: integers and polynomials over named symbols with bounds.

A shape is a tuple of `Size`: an int, or a `Dim` such as `Dim("seq", max=32768)` or `2*batch*seq + 1`. An operation
whose result is a constant gives an int, so a static size is always a plain int. Next: `type.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import TypeAlias

from rlx.core.dtype import DTYPES
from rlx.errors import InputError, ParseError

MAX_SIZE = 2**31 - 1
# words that mean something else where a size may stand in the text of a graph
RESERVED = frozenset({"none", "true", "false", "inf", "nan", *DTYPES})


@dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """A named unknown with inclusive bounds."""

    name: str
    min: int = 0
    max: int = MAX_SIZE


Monomial: TypeAlias = tuple[Symbol, ...]


@dataclass(frozen=True, slots=True, init=False)
class Dim:
    """A polynomial with integer coefficients over symbols; `terms` is sorted and has no zero coefficient."""

    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, name: str, min: int = 1, max: int = MAX_SIZE) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in RESERVED:
            raise InputError("a dim needs an identifier as its name, and no reserved word", found=repr(name))
        if not 0 <= min <= max:
            raise InputError(f"dim {name} has bounds that hold no size", found=f"{min}..{max}")
        object.__setattr__(self, "terms", (((Symbol(name, min, max),), 1),))

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The symbols that occur, sorted."""
        return tuple(sorted({symbol for monomial, _ in self.terms for symbol in monomial}))

    def __add__(self, other: Size) -> Size:
        return _combine(self, other, 1)

    def __radd__(self, other: int) -> Size:
        return self + other

    def __sub__(self, other: Size) -> Size:
        return _combine(self, other, -1)

    def __rsub__(self, other: int) -> Size:
        return _combine(other, self, -1)

    def __mul__(self, other: Size) -> Size:
        result: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                key = tuple(sorted(left + right))
                result[key] = result.get(key, 0) + a * b
        return from_terms(result)

    def __rmul__(self, other: int) -> Size:
        return self * other

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in self.terms:
            names = [symbol.name for symbol in monomial]
            factor = [str(abs(coefficient))] if abs(coefficient) != 1 or not names else []
            parts.append(("-" if coefficient < 0 else "+") + "*".join(factor + names))
        return "".join(parts).removeprefix("+")

    def __repr__(self) -> str:
        return str(self)


Size: TypeAlias = int | Dim
Shape: TypeAlias = tuple[Size, ...]


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    return size.terms if isinstance(size, Dim) else (((), index(size)),)


def from_terms(terms: Mapping[Monomial, int]) -> Size:
    """The size with these coefficients; a plain int if no symbol is left."""
    kept = tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda t: (-len(t[0]), t[0])))
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    dim = object.__new__(Dim)
    object.__setattr__(dim, "terms", kept)
    return dim


def _combine(left: Size, right: Size, sign: int) -> Size:
    result = dict(_terms(left))
    for monomial, coefficient in _terms(right):
        result[monomial] = result.get(monomial, 0) + sign * coefficient
    return from_terms(result)


def product(sizes: Iterable[Size]) -> Size:
    """The product of sizes; 1 for none."""
    result: Size = 1
    for size in sizes:
        result = result * size
    return result


def divide_exact(size: Size, divisor: int) -> Size | None:
    """`size / divisor` if every coefficient is a multiple of it; else None."""
    if any(coefficient % divisor for _, coefficient in _terms(size)):
        return None
    return from_terms({monomial: coefficient // divisor for monomial, coefficient in _terms(size)})


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The number that `size` is when each symbol has its value.

    Raises:
        InputError: a symbol has no value.
    """
    if isinstance(size, int):
        return size
    total = 0
    for monomial, coefficient in size.terms:
        term = coefficient
        for symbol in monomial:
            if symbol.name not in values:
                raise InputError(f"dim {symbol.name} has no value", expected="every symbol of the shape to be bound")
            term *= values[symbol.name]
        total += term
    return total


def bounds(size: Size) -> tuple[int, int]:
    """The smallest and the largest value `size` can have (interval arithmetic, exact for single monomials)."""
    if isinstance(size, int):
        return size, size
    low = high = 0
    for monomial, coefficient in size.terms:
        term_low = term_high = 1
        for symbol in monomial:
            term_low, term_high = term_low * symbol.min, term_high * symbol.max
        term = sorted((coefficient * term_low, coefficient * term_high))
        low, high = low + term[0], high + term[1]
    return low, high


def substitute(size: Size, values: Mapping[str, Size]) -> Size:
    """`size` with symbols replaced by other sizes."""
    if isinstance(size, int):
        return size
    total: Size = 0
    for monomial, coefficient in size.terms:
        term: Size = coefficient
        for symbol in monomial:
            term = term * values.get(symbol.name, from_terms({(symbol,): 1}))
        total = total + term
    return total


def symbols_of(sizes: Iterable[Size]) -> tuple[Symbol, ...]:
    """The symbols of several sizes, sorted, without repeats."""
    return tuple(sorted({symbol for size in sizes if isinstance(size, Dim) for symbol in size.symbols}))


def parse_size(text: str, symbols: Mapping[str, Symbol]) -> Size:
    """The inverse of `str(size)`.

    Raises:
        ParseError: the text is not a polynomial over the known symbols.
    """
    total: Size = 0
    stripped = text.replace(" ", "")
    if len(stripped) > 1000 or re.search(r"\d{31}", stripped):
        raise ParseError("a size is too long", found=f"{stripped[:40]}...", expected="numbers of up to 30 digits")
    if not re.fullmatch(r"[+-]?[A-Za-z0-9_]+(\*[A-Za-z0-9_]+)*([+-][A-Za-z0-9_]+(\*[A-Za-z0-9_]+)*)*", stripped):
        raise ParseError("not a size", found=repr(text), expected="an integer or an expression such as 2*seq+1")
    for sign, body in re.findall(r"([+-]?)([^+-]+)", stripped):
        term: Size = -1 if sign == "-" else 1
        for factor in body.split("*"):
            if factor.isdecimal():
                term = term * int(factor)
            elif factor in symbols:
                term = term * from_terms({(symbols[factor],): 1})
            else:
                raise ParseError(f"unknown dim {factor}", found=repr(text), fix=f"declare it: dim {factor} in 1..1024")
        total = total + term
    return total
