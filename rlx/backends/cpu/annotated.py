"""The code of kernels, each line with the line of Python that emitted it: LLVM IR, and the instructions it became.

In: kernels and a target. Out: `AnnotatedCode` for each kernel. The builder gives every instruction a debug location as
a compiler of C does, LLVM carries it through its optimiser, and the assembly says it with `.loc`; the instructions are
the same with and without. Sources: LLVM's documents "Source Level Debugging with LLVM" and on the `.loc` directive.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlx.backends.cpu.codegen import emit_module, optimise, target_machine
from rlx.backends.cpu.llvm import ir
from rlx.backends.cpu.native_code import function_name
from rlx.backends.cpu.target import Target
from rlx.lir.program import Kernel

PACKAGE = Path(__file__).parent
_KERNELS = str(PACKAGE / "kernels")
_NO_PLACE = ("", 0)


@dataclass(frozen=True, slots=True)
class CodeLine:
    """A line of code, and the file (below this package) and line of Python that emitted it; ("", 0) for none."""

    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class AnnotatedCode:
    """One kernel: its LLVM IR before the optimiser, and its instructions."""

    llvm: tuple[CodeLine, ...]
    asm: tuple[CodeLine, ...]


def annotated(kernels: Sequence[Kernel], target: Target) -> list[AnnotatedCode]:
    """The code of every kernel."""
    places = _Places()
    text = emit_module(kernels, target, builder=places.builder)
    machine = target_machine(target)
    listing = str(machine.emit_assembly(optimise(text, machine)))
    names = [function_name(index, kernel) for index, kernel in enumerate(kernels)]
    numbers = places.numbers
    llvm = _functions_of_llvm(text, numbers)
    asm = _functions_of_assembly(listing)
    return [AnnotatedCode(tuple(llvm.get(name, ())), tuple(asm.get(name, ()))) for name in names]


class _Places:
    """Debug locations, made when they are first needed."""

    def __init__(self) -> None:
        self._scopes: dict[tuple[Any, str], Any] = {}
        self._locations: dict[tuple[Any, str, int], Any] = {}
        self._functions: dict[Any, Any] = {}

    def builder(self, block: Any) -> Any:
        """A builder at a block that gives what it inserts a location."""
        return _builder_class()(block, self)

    def at(self, function: Any, file: str, line: int) -> Any:
        """The location of a line of a file, in a function."""
        if (function, file, line) not in self._locations:
            module = function.module
            if (function, file) not in self._scopes:
                scope = {"scope": self._function(function), "file": _file(module, file), "discriminator": 0}
                self._scopes[function, file] = module.add_debug_info("DILexicalBlockFile", scope)
            place = {"line": line, "column": 1, "scope": self._scopes[function, file]}
            self._locations[function, file, line] = module.add_debug_info("DILocation", place)
        return self._locations[function, file, line]

    @property
    def numbers(self) -> dict[str, tuple[str, int]]:
        """The file and line behind each `!N` that is a location."""
        return {value.get_reference(): (file, line) for (_, file, line), value in self._locations.items()}

    def _function(self, function: Any) -> Any:
        if function not in self._functions:
            module = function.module
            file = _file(module, "kernels")
            if not self._functions:
                flag = ir.IntType(32)
                for name, value in (("Dwarf Version", 4), ("Debug Info Version", 3)):
                    module.add_named_metadata("llvm.module.flags", [flag(2), name, flag(value)])
            unit = module.add_debug_info(
                "DICompileUnit",
                {
                    "language": ir.DIToken("DW_LANG_Python"),
                    "file": file,
                    "producer": "rlx",
                    "runtimeVersion": 0,
                    "isOptimized": True,
                    "emissionKind": ir.DIToken("LineTablesOnly"),
                },
                is_distinct=True,
            )
            module.add_named_metadata("llvm.dbg.cu", unit)
            kind = module.add_debug_info("DISubroutineType", {"types": module.add_metadata([])})
            facts = {"name": function.name, "scope": file, "file": file, "line": 1, "type": kind, "unit": unit}
            facts |= {"isLocal": False, "isDefinition": True, "isOptimized": True}
            self._functions[function] = module.add_debug_info("DISubprogram", facts, is_distinct=True)
            function.set_metadata("dbg", self._functions[function])
        return self._functions[function]


def _file(module: Any, name: str) -> Any:
    return module.add_debug_info("DIFile", {"filename": name, "directory": "/"})


def _builder_class() -> Any:
    """A builder of llvmlite's that asks who called it; a class of its own, because llvmlite is loaded late."""

    base: Any = ir.IRBuilder

    class PlacedBuilder(base):
        def __init__(self, block: Any, places: _Places) -> None:
            base.__init__(self, block)
            self._places = places

        def _insert(self, instr: Any) -> None:
            file, line = _caller()
            instr.metadata["dbg"] = self._places.at(self.function, file, line)
            base._insert(self, instr)

    return PlacedBuilder


def _caller() -> tuple[str, int]:
    """The innermost line of a kernel's file on the stack, or else of this package."""
    frame, found = sys._getframe(2), _NO_PLACE  # pyright: ignore[reportPrivateUsage]  # there is no other way
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_KERNELS) and not name.endswith("registry.py"):
            return _below_package(name), frame.f_lineno
        if found == _NO_PLACE and name.startswith(str(PACKAGE)):
            found = _below_package(name), frame.f_lineno
        frame = frame.f_back
    return found


def _below_package(path: str) -> str:
    return Path(path).relative_to(PACKAGE).as_posix()


_DEFINE = re.compile(r'define .*@"?([\w.]+)"?\(')
_LOCATION = re.compile(r", !dbg (!\d+)")


def _functions_of_llvm(text: str, numbers: dict[str, tuple[str, int]]) -> dict[str, list[CodeLine]]:
    functions: dict[str, list[CodeLine]] = {}
    current: list[CodeLine] | None = None
    for line in text.splitlines():
        match = _DEFINE.match(line)
        if match is not None:
            current = functions.setdefault(match[1], [])
        if current is None:
            continue
        found = _LOCATION.search(line)
        file, number = numbers.get(found[1], _NO_PLACE) if found else _NO_PLACE
        shown = re.sub(r" !dbg !\d+", "", _LOCATION.sub("", line))
        if shown.strip() or current:
            current.append(CodeLine(shown, file, number))
        if line == "}":
            current = None
    return functions


_LABEL = re.compile(r"([\w.$]+):")
_FILE = re.compile(r'\s+\.file\s+(\d+)\s+(?:"[^"]*"\s+)?"([^"]*)"')
_LOC = re.compile(r"\s+\.loc\s+(\d+)\s+(\d+)")
_KEPT = re.compile(r"\.L(?!func|tmp|Ltmp)\w+:")


def _functions_of_assembly(listing: str) -> dict[str, list[CodeLine]]:
    """Labels and instructions of each function; directives are left out."""
    files = {match[1]: match[2] for line in listing.splitlines() if (match := _FILE.match(line))}
    functions: dict[str, list[CodeLine]] = {}
    current: list[CodeLine] | None = None
    place = _NO_PLACE
    for line in listing.splitlines():
        if match := _LOC.match(line):
            # line 0 is LLVM's word for code that belongs to no line, or to several
            place = (files.get(match[1], ""), int(match[2])) if int(match[2]) > 1 else _NO_PLACE
        elif (match := _LABEL.match(line)) and not line.startswith("."):
            current, place = functions.setdefault(match[1], []), _NO_PLACE
        elif line.startswith((".Lfunc_end", "\t.size")):
            current = None
        elif current is not None and (_KEPT.match(line) or (line.startswith("\t") and not line.startswith("\t."))):
            code = line.partition("#")[0].rstrip() if not line.startswith(".") else line.partition(":")[0] + ":"
            if code.strip():
                current.append(CodeLine(code.replace("\t", "  ", 1).expandtabs(8), *place))
    return functions
