"""The text of a program: what is printed parses to the same program, and damaged text is refused cleanly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.graph import Location
from rlx.core.type import tensor
from rlx.errors import ParseError
from rlx.lir.program import Buffer, Kernel, Program, Step
from rlx.lir.text import parse_program, print_program
from tests.lir.lowering import lowered, step_program
from tests.strategies import damaged, graphs


@given(graphs())
@settings(max_examples=40)
def test_random_programs_come_back(graph) -> None:
    program = lowered(graph)
    text = print_program(program)
    assert parse_program(text) == program
    assert print_program(parse_program(text)) == text


def test_a_step_program_comes_back() -> None:
    program, _ = step_program()
    assert parse_program(print_program(program)) == program


def test_every_kind_of_buffer_setting_and_name_comes_back() -> None:
    n = Dim("n", min=0, max=9)
    program = Program(
        "odd.name/x",
        (("y", 1), ("z-1", 0)),
        (Kernel("op", "variant", (("a", True), ("b", -3), ("c", float("inf")), ("d", 'text "quoted", {x} = [1]'))),),
        (
            Buffer("input", tensor(f32, n, 3), "x", updated=True),
            Buffer("arena", tensor(f32, 2 * n + 1)),
            Buffer("constant", tensor(f32, 3), values=(0.1, float("-inf"), -0.0)),
            Buffer("weight", tensor(f32, 4, 4), 'layers.0."w" {}', "rows16"),
        ),
        (Step(0, (0, 1, 2, 3), (n, 3, n * n - 1), 2 * n, Location("a.b", 'f "x".py:3')),),
        ((1,),),
    )
    text = print_program(program)
    assert parse_program(text) == program
    assert print_program(parse_program(text)) == text
    assert "loc(" not in print_program(program, locations=False)


@given(st.data())
@settings(max_examples=150)
def test_damaged_text_gives_a_parse_error_or_a_program(data: st.DataObject) -> None:
    text = data.draw(damaged(print_program(step_program()[0])))
    try:
        program = parse_program(text)
    except ParseError:
        return
    # the texts are compared, because a damaged number can have become not-a-number
    assert print_program(parse_program(print_program(program))) == print_program(program)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("  step k9(b0) sizes [] units 1", "not there"),
        ("  step k0(b99) sizes [] units 1", "not there"),
        ("  step k0(b0) sizes [q] units 1", "unknown dim"),
        ("  slot b77", "not there"),
        ("  output y = b5", "not there"),
        ("  what is this", "cannot read"),
        ("  buffer b1 = arena : f99[3]", "f99"),
        ("  buffer b1 = heap : f32[3]", "unknown kind"),
        ('  buffer b1 = constant {values=["a"]} : f32[1]', "are numbers"),
        ("  kernel k1 = op.other {a=none}", "no setting"),
        ("  kernel k2 = op.other", "numbered in order"),
        ("  buffer b0 = arena : f32[3]", "numbered in order"),
        ("  buffer b1 = arena : f32[3] f32", "after the end"),
        ('  buffer b1 = input "\\q" : f32[3]', "quoted string"),
        ("  step k0(b0) sizes [] units 1 more", "after the end"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str) -> None:
    good = 'program p {\n  kernel k0 = op.variant\n  buffer b0 = input "x" : f32[3]\n}\n'
    parse_program(good)
    with pytest.raises(ParseError, match=message):
        parse_program(good.replace("\n}", f"\n{line}\n}}"))


def test_golden_text(golden: Callable[[str, str], None]) -> None:
    golden("lir_llama_1_layer_step", print_program(step_program()[0], locations=False))
