"""Everything the page shows, as plain values: what is seen at once, and the code, which is unpacked on demand.

In: a compilation, the loaded program, a profile. Out: `PageData`. What each entry holds is said where it is made:
`levels.py`, `passes.py`, `dispatch.py`, `memory.py`, `rlx/inspect/profile_report.py`. Next: `page.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from rlx.backends.cpu.annotated import AnnotatedCode, CodeLine, annotated
from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.target import Target
from rlx.core.graph import Graph
from rlx.flow.flow import ModelFlow
from rlx.inspect.explain.dispatch import choices, decisions
from rlx.inspect.explain.levels import Index, became, flow_level, graph_level, program_level
from rlx.inspect.explain.memory import memory_map
from rlx.inspect.explain.passes import pass_diff
from rlx.inspect.profile_report import ProfileReport
from rlx.inspect.steps import kernel_text, nodes_of_steps
from rlx.inspect.timing import Phase
from rlx.lir.program import Program

PACKAGE = Path(__file__).parents[2]
FLOW_FOLDERS = ("flow", "models")


@dataclass(frozen=True, slots=True)
class Stage:
    """What one pass gave."""

    name: str
    level: str
    result: Graph | Program


@dataclass(frozen=True, slots=True)
class PageData:
    """What the page holds: `core` at once, `code` when somebody opens a kernel."""

    core: dict[str, object]
    code: dict[str, object]


def page_data(
    flow: ModelFlow, stages: Sequence[Stage], target: Target, report: ProfileReport, sizes: dict[str, int]
) -> PageData:
    """Put the page's data together.

    Args:
        flow: what the author wrote.
        stages: from the forward pass to the last program.
        target: what the program was made for.
        report: of the same program.
        sizes: bytes of what stays in memory, by name.
    """
    graphs = [stage.result for stage in stages if isinstance(stage.result, Graph)]
    program = next(stage.result for stage in reversed(stages) if isinstance(stage.result, Program))
    legalised = next(i for i, stage in enumerate(stages) if stage.name == "legalize")
    source = stages[legalised - 1].result
    hir = source if isinstance(source, Graph) else graphs[0]
    nodes, index, backend = nodes_of_steps(graphs[-1], program), Index(), CpuBackend(target)
    code = annotated(program.kernels, target)
    core: dict[str, object] = {
        "model": report.model,
        "facts": [
            [key, Path(str(value)).name if key == "path" else value]  # the page may be shown to others
            for key, value in report.facts.items()
            if isinstance(value, str | int | float)
        ],
        "flow": flow_level(flow, index),
        "hir": {**graph_level(hir, index), "step": became(hir, nodes)},
        "mir": {**graph_level(graphs[-1], index), "step": became(graphs[-1], nodes)},
        "lir": program_level(program, index),
        "kernels": [
            {
                **asdict(choice),
                "name": f"k{choice.kernel} {kernel_text(program.kernels[choice.kernel])}",
                **_lengths(made),
            }
            for choice, made in zip(choices(nodes, program, backend), code, strict=True)
        ],
        "decisions": [asdict(decision) for decision in decisions(hir, backend)],
        "passes": [
            asdict(pass_diff(after.name, after.level, before.result, after.result))
            for before, after in pairwise(stages)
        ],
        "memory": [{"name": phase.name, **asdict(memory_map(program, phase.dims))} for phase in report.phases],
        "sizes": sizes,
        "limits": report.limits.to_json(),
        "phases": [_phase(phase) for phase in report.phases],
    }
    core["blocks"], core["sources"] = list(index.blocks), list(index.sources)
    return PageData(core, _code(code, index))


def _lengths(code: AnnotatedCode) -> dict[str, int]:
    return {"llvm_lines": len(code.llvm), "instructions": sum(line.text.startswith(" ") for line in code.asm)}


def _phase(phase: Phase) -> dict[str, object]:
    rows = [
        [row.seconds, row.bytes, row.operations, row.bound_seconds, row.memory_share, row.arithmetic]
        for row in phase.steps
    ]
    return {
        "name": phase.name,
        "unit": phase.unit,
        "amount": phase.amount,
        "runs": phase.runs,
        "wall": phase.wall_seconds,
        "untraced": phase.untraced_seconds,
        "accounted": phase.accounted,
        "others": [[name, seconds] for name, seconds in phase.others.items()],
        "dims": dict(phase.dims),
        "steps": rows,
    }


def _code(code: Sequence[AnnotatedCode], index: Index) -> dict[str, object]:
    """The code of each kernel, each line with the number of its place, and the text of the files that are named."""
    places: dict[tuple[str, int], int] = {}

    def numbered(lines: Sequence[CodeLine]) -> list[int]:
        return [places.setdefault((line.file, line.line), len(places)) if line.file else -1 for line in lines]

    kernels = [
        {
            "llvm": [line.text for line in made.llvm],
            "llvm_at": numbered(made.llvm),
            "asm": [line.text for line in made.asm],
            "asm_at": numbered(made.asm),
        }
        for made in code
    ]
    files = {file: _text(PACKAGE / "backends" / "cpu" / file) for file in {file for file, _ in places}}
    files |= dict(_flow_files(index))
    return {"kernels": kernels, "places": [list(place) for place in places], "files": files}


def _flow_files(index: Index) -> list[tuple[str, str]]:
    """The files of the blocks: a location names a file without its folder, so it is looked for where blocks are."""
    wanted = {source.partition(":")[0] for source in index.sources if source}
    paths = [path for folder in FLOW_FOLDERS for path in (PACKAGE / folder).rglob("*.py")]
    return [(path.name, _text(path)) for path in paths if path.name in wanted]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
