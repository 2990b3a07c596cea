"""A program as plain values: through JSON and back it is the same program; other values are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings

from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.graph import Location
from rlx.core.type import tensor
from rlx.errors import ParseError
from rlx.lir.encode import decode, encode
from rlx.lir.program import Buffer, Kernel, Program, Step
from rlx.lir.text import print_program
from tests.lir.lowering import lowered, step_program
from tests.strategies import graphs


def through_json(program: Program) -> Program:
    return decode(json.loads(json.dumps(encode(program))))


@given(graphs())
@settings(max_examples=40)
def test_random_programs_come_back(graph: Any) -> None:
    program = lowered(graph)
    assert through_json(program) == program


def test_a_step_program_comes_back() -> None:
    program, _ = step_program()
    assert through_json(program) == program
    assert print_program(through_json(program)) == print_program(program)


def test_every_kind_of_value_comes_back() -> None:
    n = Dim("n", min=0, max=9)
    program = Program(
        "odd.name/x",
        (("y", 1),),
        (Kernel("op", "variant", (("a", True), ("b", -3), ("c", float("inf")), ("d", 'text "quoted"'), ("e", 1.0))),),
        (
            Buffer("input", tensor(f32, n, 3), "x", updated=True),
            Buffer("arena", tensor(f32, 2 * n * n + 1)),
            Buffer("constant", tensor(f32, 3), values=(0.1, float("-inf"), -0.0)),
        ),
        (Step(0, (0, 1), (n, 3, n * n - 1), 2 * n, Location("a.b", 'f "x".py:3'), (1,), beside=True),),
        ((1,),),
    )
    found = through_json(program)
    assert found == program
    # True, 1 and 1.0 are equal, but not the same setting of a kernel
    assert [type(value) for _, value in found.kernels[0].config] == [bool, int, float, str, float]
    assert print_program(found) == print_program(program)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("steps", [[0, [99], [], 0, 0, [], False]]),
        ("steps", [[700, [], [], 0, 0, [], False]]),
        ("steps", [[0, [-1], [], 0, 0, [], False]]),
        ("outputs", [["y", 99]]),
        ("types", [["no_such_type", []]]),
        ("buffers", [["no such kind", 0, "", "", [], False]]),
        ("slots", [[99]]),
        ("kernels", None),
    ],
)
def test_other_values_are_refused(part: str, value: Any) -> None:
    plain = encode(step_program()[0])
    with pytest.raises(ParseError):
        decode({**plain, part: value})
