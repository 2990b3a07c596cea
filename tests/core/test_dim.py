"""Symbolic sizes against the same arithmetic on integers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.core.dim import Dim, Size, Symbol, bounds, evaluate, parse_size, product, substitute, symbols_of
from rlx.errors import InputError, ParseError
from tests.strategies import SYMBOLS, SizeTree, sizes, values_of_symbols

KNOWN: dict[str, Symbol] = {dim.symbols[0].name: dim.symbols[0] for dim in SYMBOLS}


@given(sizes, values_of_symbols)
def test_arithmetic_is_that_of_integers(tree: SizeTree, values: dict[str, int]) -> None:
    assert evaluate(tree.size, values) == tree.number(values)


@given(sizes)
def test_text_parses_back(tree: SizeTree) -> None:
    assert parse_size(str(tree.size), KNOWN) == tree.size


@given(sizes, values_of_symbols)
def test_bounds_contain_every_value(tree: SizeTree, values: dict[str, int]) -> None:
    low, high = bounds(tree.size)
    assert low <= evaluate(tree.size, values) <= high


@given(sizes, sizes, values_of_symbols)
def test_equal_polynomials_are_equal_whatever_the_order(a: SizeTree, b: SizeTree, values: dict[str, int]) -> None:
    left: Size = a.size * b.size + a.size
    right: Size = a.size + b.size * a.size
    assert left == right
    assert hash(left) == hash(right)
    assert left - right == 0


@given(sizes, values_of_symbols)
def test_substitution_of_numbers_is_evaluation(tree: SizeTree, values: dict[str, int]) -> None:
    assert substitute(tree.size, values) == tree.number(values)


def test_bounds_of_a_product_are_reached() -> None:
    batch, seq = Dim("batch", min=2, max=4), Dim("seq", min=3, max=5)
    assert bounds(batch * seq * 7) == (42, 140)
    assert bounds(10 - seq) == (5, 7)


def test_a_constant_result_is_a_plain_int() -> None:
    seq = Dim("seq")
    for size in (seq - seq, (seq + 3) - seq, seq * 0, product([]), product([seq, 0])):
        assert type(size) is int


def test_substitution_takes_sizes() -> None:
    seq, past = Dim("seq"), Dim("past", min=0)
    assert substitute(2 * seq + 1, {"seq": past + 3}) == 2 * past + 7
    assert symbols_of([seq, 3, past * seq]) == (*past.symbols, *seq.symbols)


@pytest.mark.parametrize("name", ["", "2x", "a-b", "a b", "f32", "none", "true", "nan", "inf"])
def test_a_dim_needs_a_name_that_can_be_read_back(name: str) -> None:
    with pytest.raises(InputError):
        Dim(name)


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (4, 3)])
def test_bounds_that_hold_no_size_are_refused(low: int, high: int) -> None:
    with pytest.raises(InputError):
        Dim("seq", low, high)


def test_a_dim_times_a_fraction_is_refused() -> None:
    with pytest.raises(TypeError):
        Dim("seq") * 0.5  # type: ignore[operator]


def test_an_unbound_symbol_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="past has no value"):
        evaluate(Dim("seq") + Dim("past"), {"seq": 3})


@pytest.mark.parametrize(
    "text", ["", "+", "seq+", "seq*", "2seq", "seq seq", "seq**2", "seq/2", "1.5", "(seq)", "9" * 31]
)
def test_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_size(text, KNOWN)


@given(st.text(st.sampled_from("seqbatch0123*+- "), max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        size = parse_size(text, KNOWN)
    except ParseError:
        return
    assert parse_size(str(size), KNOWN) == size
