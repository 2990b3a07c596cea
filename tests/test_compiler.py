"""The pipeline as a whole: texts of every stage, the dump folder, reproducers, options, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import rlx
from rlx import compiler
from rlx.backends.null import NullBackend
from rlx.compiler import compile_graph, level_of
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32, q8_act
from rlx.core.graph import Graph, GraphBuilder, Location
from rlx.core.text import parse_graph, print_graph
from rlx.core.type import tensor
from rlx.errors import CompileError, InputError, OptionError, ShapeError, StorageError, UnsupportedOpError, VerifyError
from rlx.lir.text import parse_program, print_program
from rlx.ops.op import Emitter
from tests.lir.lowering import BACKEND, step_graph


def small() -> Graph:
    """Two ops that are decomposed and fused, in a block with a name."""
    builder = GraphBuilder("small")
    emit = Emitter(builder, Location("block.0", "block.py:7"))
    x = builder.input("x", tensor(f32, Dim("n", max=64), 8))
    builder.output("y", emit("softmax", emit("gelu", emit("add", x, x))))
    return builder.build()


@pytest.fixture(autouse=True)
def _own_cache(empty_cache: Path) -> None:
    """Nothing is left in the user's cache."""


# ---- texts and dumps ----


def test_every_level_of_an_executable_has_a_text() -> None:
    exe = rlx.compile(small(), threads=1)
    assert set(exe.text) == {"hir", "mir", "lir", "llvm", "asm"}
    assert len(exe.text) == 5
    assert print_graph(parse_graph(exe.text["hir"])) == exe.text["hir"]
    assert print_graph(parse_graph(exe.text["mir"])) == exe.text["mir"]
    assert print_program(parse_program(exe.text["lir"])) == exe.text["lir"]
    assert "softmax" in exe.text["hir"]
    assert "softmax" not in exe.text["mir"]
    assert "define void" in exe.text["llvm"]
    assert "rlx_run" in exe.text["asm"]
    with pytest.raises(KeyError):
        exe.text["ptx"]
    exe.close()


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_dump_holds_every_stage_in_order(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "dump"
    monkeypatch.setenv("RLX_DUMP", str(folder))
    compile_graph(step_graph(), BACKEND, precision=precision)
    names = sorted(path.name for path in folder.iterdir())
    passes = ["hir-input", "hir-simplify", "mir-legalize", "mir-fuse_residual", "mir-fuse_rope", "mir-fuse_elementwise"]
    passes += ["mir-quantize_activations", "mir-fuse_quantize", "mir-round_attention"] if precision == "fast" else []
    passes += ["mir-simplify", "lir-lower", "lir-overlap_steps", "lir-plan_memory"]
    assert names == [f"{i:02d}-{name}.txt" for i, name in enumerate(passes)]
    for path in folder.iterdir():
        text = path.read_text()
        if "-lir-" in path.name:
            assert print_program(parse_program(text)) == text
        else:
            assert print_graph(parse_graph(text)) == text


def test_a_dumped_stage_can_be_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HIR and MIR texts are complete programs: from each of them the same results come out."""
    monkeypatch.setenv("RLX_DUMP", str(tmp_path))
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    exe = rlx.compile(small(), threads=1)
    expected = exe(x=x)["y"]
    exe.close()
    monkeypatch.delenv("RLX_DUMP")
    for path in tmp_path.glob("*-[hm]ir-*.txt"):
        again = rlx.compile(parse_graph(path.read_text()), threads=1)
        assert np.array_equal(again(x=x)["y"], expected), path.name
        again.close()


def test_a_dump_that_cannot_be_written_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLX_DUMP", str(tmp_path / "file" / "dump"))
    with pytest.raises(StorageError, match="cannot be written"):
        compile_graph(small(), BACKEND)


# ---- failing passes ----


def test_a_pass_that_crashes_leaves_a_reproducer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Graph) -> Graph:
        raise ZeroDivisionError("in the middle of it")

    monkeypatch.setattr(compiler, "fuse_elementwise", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CompileError) as caught:
        compile_graph(small(), BACKEND)
    assert "the pass fuse_elementwise failed: ZeroDivisionError: in the middle of it" in caught.value.message
    (path,) = tmp_path.iterdir()
    assert caught.value.where == str(path)
    text = path.read_text()
    assert text.startswith("# pass: fuse_elementwise\n")
    graph = parse_graph(text)
    assert "softmax" not in {node.op for node in graph.nodes}, "the graph is what the pass was given: legalised"
    monkeypatch.undo()
    compile_graph(graph, BACKEND)


def test_a_reproducer_that_cannot_be_written_does_not_hide_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Graph) -> Graph:
        raise ZeroDivisionError("first cause")

    monkeypatch.setattr(compiler, "fuse_elementwise", broken)
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent/folder")
    with pytest.raises(CompileError, match="first cause"):
        compile_graph(small(), BACKEND)


def test_a_pass_that_breaks_the_graph_is_caught_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Graph) -> Graph:
        return Graph(graph.name, graph.inputs, graph.nodes[1:], graph.outputs)

    monkeypatch.setattr(compiler, "fuse_elementwise", broken)
    with pytest.raises(VerifyError, match="fuse_elementwise"):
        compile_graph(small(), BACKEND)


def test_an_error_that_is_already_clear_passes_as_it_is() -> None:
    builder = GraphBuilder("g")
    packed = builder.input("x", tensor(q8_act, 4, 32))
    builder.output("y", Emitter(builder)("dequantize", packed))
    with pytest.raises(UnsupportedOpError, match="cannot run dequantize"):
        rlx.compile(builder.build())


# ---- options ----


def test_fusion_can_be_left_out() -> None:
    with_fusion, _ = compile_graph(small(), BACKEND)
    without, _ = compile_graph(small(), BACKEND, fusion=False)
    assert len(with_fusion.steps) < len(without.steps)


def test_the_level_of_a_graph_is_found() -> None:
    assert level_of(small()) == "hir"
    _, stages = compile_graph(small(), BACKEND)
    mir = stages.graphs["mir"]
    assert isinstance(mir, Graph)
    assert level_of(mir) == "mir"


def test_the_null_backend_compiles_everything() -> None:
    program, stages = compile_graph(step_graph(), NullBackend())
    assert {kernel.variant for kernel in program.kernels} == {"null"}
    assert set(stages.graphs) == {"hir", "mir", "lir"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gpu"}, "target"),
        ({"precision": "half"}, "precision"),
        ({"threads": 0}, "threads"),
        ({"threads": -2}, "threads"),
    ],
)
def test_an_option_that_is_not_allowed_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        rlx.compile(small(), **options)  # type: ignore[arg-type]


# ---- running ----


def test_inputs_are_checked_before_anything_runs() -> None:
    exe = rlx.compile(small(), threads=1)
    x = np.zeros((5, 8), np.float32)
    for bad, message in (
        ({}, "missing"),
        ({"x": x, "z": x}, "no input called z"),
        ({"x": x.astype(np.float64)}, "another dtype"),
        ({"x": x[0]}, "another rank"),
        ({"x": x[:, :7]}, "another shape"),
        ({"x": np.zeros((65, 8), np.float32)}, "out of its bounds"),
        ({"x": [[1.0]]}, "not a NumPy array"),
    ):
        with pytest.raises(InputError, match=message):
            exe(**bad)  # type: ignore[arg-type]
    exe.close()


def test_strided_inputs_are_read_right_and_results_are_the_callers_own() -> None:
    exe = rlx.compile(small(), threads=1)
    wide = np.random.default_rng(0).standard_normal((10, 16)).astype(np.float32)
    strided = wide[::2, ::2]
    first = exe(x=strided)["y"]
    assert np.array_equal(first, exe(x=strided.copy())["y"])
    kept = first.copy()
    exe(x=strided * 2)
    assert np.array_equal(first, kept), "a later run changed an earlier result"
    exe.close()


def test_a_graph_that_gives_out_its_inputs_weights_and_constants() -> None:
    """Nothing has to be computed, and what is given out is a copy."""
    builder = GraphBuilder("pass_through")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, Dim("n"), 2))
    builder.output("same", x)
    builder.output("flat", emit("reshape", x, shape=(Dim("n") * 2,)))
    builder.output("constant", emit("constant", dtype=i32, shape=(3,), values=(1, 2, 3)))
    builder.output("weight", emit("parameter", key="w", dtype=f32, shape=(2, 2)))
    y = emit("neg", x)
    builder.output("y", y)
    builder.output("y_flat", emit("reshape", y, shape=(Dim("n") * 2,)))
    weight = np.arange(4, dtype=np.float32).reshape(2, 2)
    exe = rlx.compile(builder.build(), {"w": weight}, threads=2)
    x_array = np.arange(6, dtype=np.float32).reshape(3, 2)
    got = exe(x=x_array)
    assert np.array_equal(got["same"], x_array)
    assert np.array_equal(got["flat"], x_array.reshape(-1))
    assert got["constant"].dtype == np.int32
    assert got["constant"].tolist() == [1, 2, 3]
    assert np.array_equal(got["weight"], weight)
    assert np.array_equal(got["y_flat"], -x_array.reshape(-1))
    for name in got:
        got[name][...] = 9
    again = exe(x=x_array)
    assert np.array_equal(again["weight"], weight)
    assert again["constant"].tolist() == [1, 2, 3]
    assert x_array.max() == 5
    exe.close()


def test_a_program_without_weights_says_so() -> None:
    builder = GraphBuilder("g")
    builder.output("w", Emitter(builder)("parameter", key="w", dtype=f32, shape=(2,)))
    with pytest.raises(InputError, match="has weights, and none were given"):
        rlx.compile(builder.build())


@pytest.mark.parametrize("found", [(2, 3), (7,), (6,)])
def test_a_weight_of_another_shape_is_refused(found: tuple[int, ...]) -> None:
    """Its bytes would be read beyond their end, or cut."""
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, 1, 4))
    builder.output("y", emit("linear", x, emit("parameter", key="w", dtype=f32, shape=(2, 4))))
    with pytest.raises(rlx.RlxError, match="w has another"):
        rlx.compile(builder.build(), {"w": np.zeros(found, np.float32)})


def test_empty_extents_run() -> None:
    builder = GraphBuilder("g")
    x = builder.input("x", tensor(f32, Dim("n", min=0), 8))
    builder.output("y", Emitter(builder)("softmax", x))
    exe = rlx.compile(builder.build(), threads=2)
    assert exe(x=np.zeros((0, 8), np.float32))["y"].shape == (0, 8)
    assert exe(x=np.zeros((3, 8), np.float32))["y"].tolist() == [[0.125] * 8] * 3
    exe.close()


def test_a_graph_that_is_not_well_formed_is_refused() -> None:
    graph = small()
    with pytest.raises((VerifyError, ShapeError)):
        rlx.compile(Graph(graph.name, (), graph.nodes, graph.outputs))
