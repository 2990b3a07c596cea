"""What the page says is true of the program: lines that belong together, memory that is not used twice, sources."""

from __future__ import annotations

import base64
import gzip
import json
import re
from importlib.resources import files
from typing import Any

import pytest

from rlx.backends.cpu.annotated import annotated
from rlx.backends.cpu.codegen import assembly
from rlx.core.graph import Graph
from rlx.errors import UnsupportedModelError
from rlx.flow.text import print_flow
from rlx.inspect.explain.data import PageData
from rlx.inspect.explain.page import SCRIPTS, packed
from rlx.inspect.explain.passes import pass_diff
from rlx.inspect.steps import folded
from rlx.runtime.loaded_model import LoadedModel
from rlx.runtime.profiler import compilation_of, module_of
from tests.inspect.conftest import HOSTILE, LAYERS

SOURCES = {name: (files("rlx.inspect.explain") / "page" / name).read_text() for name in SCRIPTS}


@pytest.fixture(scope="module")
def core(page: str) -> dict[str, Any]:
    """What is on the page, read back from its text."""
    (text,) = re.findall(r'<script type="application/gzip" id="core">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_every_line_of_a_graph_leads_to_the_step_that_does_its_work(core: dict[str, Any]) -> None:
    steps, blocks = core["lir"], core["blocks"]
    assert len(core["hir"]["lines"]) == len(core["hir"]["step"]) == len(core["hir"]["block"])
    assert min(core["hir"]["step"]) >= 0
    assert sorted({step for step in core["mir"]["step"] if step >= 0}) == list(range(len(steps["lines"])))
    for number, op in enumerate(core["hir"]["op"]):
        step = core["hir"]["step"][number]
        if op in ("linear", "rms_norm", "rope", "paged_attention"):
            # a pass may take a node into its neighbour, but never into another layer
            assert blocks[core["hir"]["block"][number]].split(".")[:2] == blocks[steps["block"][step]].split(".")[:2]
    linears = [step for number, step in enumerate(core["hir"]["step"]) if core["hir"]["op"][number] == "linear"]
    assert len(set(linears)) == len(linears)
    assert all("linear" in core["kernels"][steps["kernel"][step]]["name"] for step in linears)


def test_no_two_buffers_are_in_one_place_at_one_time(core: dict[str, Any]) -> None:
    for memory in core["memory"]:
        placed = memory["placed"]
        assert len(placed) > LAYERS
        for i, a in enumerate(placed):
            assert 0 <= a["offset"] <= a["offset"] + a["size"] <= memory["arena"]
            for b in placed[:i]:
                apart = a["last"] < b["first"] or b["last"] < a["first"]
                assert apart or a["offset"] + a["size"] <= b["offset"] or b["offset"] + b["size"] <= a["offset"]


def test_the_dispatch_report_gives_reasons(core: dict[str, Any]) -> None:
    by_op = {decision["op"]: decision for decision in core["decisions"]}
    assert by_op["swiglu"]["how"] == "decomposed"
    assert by_op["swiglu"]["into"] == ["silu", "mul"]
    assert "no kernel" in by_op["swiglu"]["reason"]
    assert by_op["add"]["how"] == "rewritten"
    assert by_op["linear"]["how"] == "native"
    for kernel in core["kernels"]:
        taken = [candidate for candidate in kernel["candidates"] if not candidate["reason"]]
        assert [candidate["variant"] for candidate in taken] == [kernel["variant"]]
    linear = next(kernel for kernel in core["kernels"] if " linear." in kernel["name"])
    assert len(linear["candidates"]) > 1


def test_passes_tell_counts_and_fold_layers(core: dict[str, Any]) -> None:
    passes = {item["name"]: item for item in core["passes"]}
    assert list(passes)[:3] == ["derive the program", "simplify", "legalize"]
    assert ["swiglu", LAYERS, 0] in passes["legalize"]["counts"]
    (mlp, *_) = [block for block in passes["legalize"]["blocks"] if block["block"] == "layers.*.mlp"]
    assert mlp["times"] == LAYERS - 1  # the last layer is computed for the rows that are wanted only
    signs = [line[0] for line in mlp["lines"]]
    assert signs.count("-") == 1
    assert signs.count("+") == 2


def test_an_unchanged_graph_differs_in_nothing(deep_model: LoadedModel) -> None:
    graph = compilation_of(deep_model).mir
    assert isinstance(graph, Graph)
    found = pass_diff("same", "mir", graph, graph)
    assert (found.counts, found.blocks, found.before) == ((), (), found.after)


def test_code_is_the_code_that_runs_and_names_its_source(deep_model: LoadedModel, data: PageData) -> None:
    module = module_of(deep_model)
    kernels = module.program.kernels[:4]
    made = annotated(kernels, module.target)
    plain = [line.split("#")[0].split() for line in assembly(kernels, module.target).splitlines()]
    plain_words = {" ".join(words) for words in plain if words}
    for code in made:
        instructions = [" ".join(line.text.split()) for line in code.asm if line.text.startswith(" ")]
        assert instructions
        # labels are numbered otherwise; what is left of the instructions is the same with and without locations
        assert all(text in plain_words for text in instructions if ".L" not in text)
        assert sum(bool(line.file) for line in code.asm) > 0.5 * len(code.asm)
    texts: Any = data.code["files"]
    for file, line in data.code["places"]:  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        assert 0 < line <= len(texts[file].splitlines())
    kernel = texts["kernels/linear_float.py"]
    assert "def " in kernel


def test_a_flow_is_told_with_its_layers_once(deep_model: LoadedModel) -> None:
    text = print_flow(compilation_of(deep_model).flow)
    assert f"repeat layers × {LAYERS}" in text
    assert text.count("SelfAttention") == 1
    assert "model.layers.*.mlp.gate_proj.weight" in text


def test_the_page_asks_nothing_of_a_network_and_reads_no_text_as_html(page: str, core: dict[str, Any]) -> None:
    assert core["model"] == HOSTILE
    assert "<img" not in page
    assert page.count("<script") == 3
    assert "default-src 'none'" in page
    for name, source in SOURCES.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
            assert word not in source, f"{name}: {word}"
    addresses = set(re.findall(r"https?://[^\"' ]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a namespace, which nobody fetches
    assert packed({"a": 1}) == packed({"a": 1})


def test_folded_paths() -> None:
    assert [folded(path) for path in ("layers.3.mlp", "layers.12", "lm_head", "")] == [
        "layers.*.mlp", "layers.*", "lm_head", "program",
    ]  # fmt: skip


def test_a_model_that_nobody_loaded_cannot_be_explained(deep_model: LoadedModel) -> None:
    origin, deep_model.origin = deep_model.origin, None
    try:
        with pytest.raises(UnsupportedModelError, match="where this model came from"):
            compilation_of(deep_model)
    finally:
        deep_model.origin = origin
