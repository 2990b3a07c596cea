"""LIR to text and back: `parse_program(print_program(p))` equals `p`.

program step {
  dim T in 1..512
  kernel k0 = linear.float {bias=false, weight="f32"}
  buffer b0 = input "x" : f32[T, 64]
  buffer b1 = weight "w" {layout="rows16"} : f32[48, 64]
  buffer b2 = arena : f32[T, 48]
  step k0(b0, b1, b2!) sizes [T, 64, 48] units 3  loc("head", "head.py:9")
  slot b2
  output y = b2
}

A `!` marks what a step writes; a line `beside k1(...)` is a step that does not wait for the one before it.
"""

from __future__ import annotations

import json
import re

from rlx.core.dim import Size, Symbol
from rlx.core.graph import UNKNOWN, Location
from rlx.core.text import Cursor, print_attr, print_attrs
from rlx.errors import ParseError
from rlx.lir.program import BUFFER_KINDS, Buffer, Kernel, Program, Step


def print_program(program: Program, *, locations: bool = True) -> str:
    """The whole program as text."""
    lines = [f"program {program.name} {{"]
    lines += [f"  dim {s.name} in {s.min}..{s.max}" for s in program.symbols]
    for i, kernel in enumerate(program.kernels):
        lines.append(f"  kernel k{i} = {kernel.op}.{kernel.variant} {print_attrs(kernel.settings)}".rstrip())
    lines += [f"  buffer b{i} = {_print_buffer(buffer)}" for i, buffer in enumerate(program.buffers)]
    for step in program.steps:
        operands = ", ".join(f"b{b}!" if b in step.written else f"b{b}" for b in step.buffers)
        word = "beside" if step.beside else "step"
        text = f"  {word} k{step.kernel}({operands}) sizes {print_attr(step.sizes)} units {step.units}"
        if locations and step.location != UNKNOWN:
            text += f"  loc({json.dumps(step.location.path)}, {json.dumps(step.location.source)})"
        lines.append(text)
    lines += ["  slot " + ", ".join(f"b{b}" for b in slot) for slot in program.slots]
    lines += [f"  output {name} = b{b}" for name, b in program.outputs]
    return "\n".join([*lines, "}"]) + "\n"


def _print_buffer(buffer: Buffer) -> str:
    parts = [buffer.kind]
    if buffer.name:
        parts.append(json.dumps(buffer.name))
    attrs: dict[str, str | bool | tuple[float, ...]] = {}
    if buffer.layout:
        attrs["layout"] = buffer.layout
    if buffer.values:
        attrs["values"] = buffer.values
    if buffer.updated:
        attrs["updated"] = True
    if attrs:
        parts.append(print_attrs(attrs))
    return " ".join([*parts, ":", str(buffer.type)])


def parse_program(text: str) -> Program:
    """The program that a text describes.

    Raises:
        ParseError: with the line that could not be read.
    """
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(i, line) for i, line in lines if line and not line.startswith("#")]
    if not lines or not (head := re.fullmatch(r"program (\S+) \{", lines[0][1])) or lines[-1][1] != "}":
        raise ParseError("not the text of a program", expected="program NAME { ... }")
    symbols: dict[str, Symbol] = {}
    kernels: list[Kernel] = []
    buffers: list[Buffer] = []
    steps: list[Step] = []
    slots: list[tuple[int, ...]] = []
    outputs: list[tuple[str, int]] = []
    for number, line in lines[1:-1]:
        where = f"line {number}"
        if match := re.fullmatch(r"dim (\w+) in (\d+)\.\.(\d+)", line):
            symbols[match[1]] = Symbol(match[1], int(match[2]), int(match[3]))
        elif match := re.fullmatch(r"kernel k(\d+) = (\w+)\.(\w+)(.*)", line):
            _check_number(match[1], len(kernels), where)
            kernels.append(Kernel(match[2], match[3], _parse_config(Cursor(match[4], where, symbols))))
        elif match := re.fullmatch(r"buffer b(\d+) = (.+)", line):
            _check_number(match[1], len(buffers), where)
            buffers.append(_parse_buffer(Cursor(match[2], where, symbols)))
        elif line.startswith("step "):
            steps.append(_parse_step(Cursor(line.removeprefix("step "), where, symbols), beside=False))
        elif line.startswith("beside ") and steps:
            steps.append(_parse_step(Cursor(line.removeprefix("beside "), where, symbols), beside=True))
        elif line.startswith("slot "):
            slots.append(tuple(_index(word, "b", where) for word in line.removeprefix("slot ").split(", ")))
        elif match := re.fullmatch(r"output (\S+) = (b\d+)", line):
            outputs.append((match[1], _index(match[2], "b", where)))
        else:
            raise ParseError("cannot read this line", where=where, found=repr(line))
    program = Program(head[1], tuple(outputs), tuple(kernels), tuple(buffers), tuple(steps), tuple(slots))
    _check_indices(program)
    return program


def _check_number(number: str, expected: int, where: str) -> None:
    if number != str(expected):
        raise ParseError("kernels and buffers are numbered in order", where=where, found=number, expected=expected)


def _check_indices(program: Program) -> None:
    used = [b for step in program.steps for b in step.buffers] + [b for slot in program.slots for b in slot]
    used += [b for _, b in program.outputs]
    if any(b >= len(program.buffers) for b in used) or any(s.kernel >= len(program.kernels) for s in program.steps):
        raise ParseError("a step, slot or output names a buffer or kernel that is not there", where=program.name)


def _index(word: str, letter: str, where: str) -> int:
    if not re.fullmatch(letter + r"\d+", word):
        raise ParseError("unexpected text", where=where, found=repr(word), expected=f"{letter} and a number")
    return int(word[1:])


def _parse_config(cursor: Cursor) -> tuple[tuple[str, int | float | str | bool], ...]:
    config: list[tuple[str, int | float | str | bool]] = []
    for name, value in sorted(cursor.attrs().items()):
        if not isinstance(value, (int, float, str)):
            raise ParseError(f"{name} is no setting of a kernel", where=cursor.where, found=print_attr(value))
        config.append((name, value))
    cursor.end()
    return tuple(config)


def _parse_buffer(cursor: Cursor) -> Buffer:
    kind = cursor.take()
    if kind not in BUFFER_KINDS:
        raise ParseError(
            "unknown kind of buffer", where=cursor.where, found=repr(kind), expected=", ".join(BUFFER_KINDS)
        )
    name = cursor.string() if cursor.peek().startswith('"') else ""
    attrs = cursor.attrs()
    cursor.take(":")
    values = attrs.get("values", ())
    numbers = [float(v) for v in values if isinstance(v, (int, float))] if isinstance(values, tuple) else []
    if not isinstance(values, tuple) or len(numbers) != len(values):
        raise ParseError("the values of a constant are numbers", where=cursor.where, found=print_attr(values))
    type_ = cursor.type()
    cursor.end()
    return Buffer(kind, type_, name, str(attrs.get("layout", "")), tuple(numbers), attrs.get("updated") is True)


def _parse_step(cursor: Cursor, *, beside: bool) -> Step:
    kernel = _index(cursor.take(), "k", cursor.where)
    cursor.take("(")
    words = [cursor.take() for _ in cursor.items(")")]
    buffers = tuple(_index(word.removesuffix("!"), "b", cursor.where) for word in words)
    written = tuple(sorted({buffer for word, buffer in zip(words, buffers, strict=True) if word.endswith("!")}))
    cursor.take("sizes")
    cursor.take("[")
    sizes: tuple[Size, ...] = tuple(cursor.size() for _ in cursor.items("]"))
    cursor.take("units")
    units = cursor.size()
    location = UNKNOWN
    if cursor.accept("loc"):
        cursor.take("(")
        path, _, source, _ = cursor.string(), cursor.take(","), cursor.string(), cursor.take(")")
        location = Location(path, source)
    cursor.end()
    return Step(kernel, buffers, sizes, units, location, written, beside)
