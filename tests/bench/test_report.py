"""docs/benchmarks.md from results: parts, merging of rounds, losses shown, a part that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.lab.document import write_document
from bench.report import Part, parts_of, run_part, with_rounds_of


def speed(*values: float) -> dict[str, object]:
    ordered = sorted(values)
    return {"median": ordered[len(values) // 2], "min": ordered[0], "max": ordered[-1], "values": list(values)}


def document(*ratios: float) -> dict[str, object]:
    peer = {"speed": speed(*(100.0 for _ in ratios)), "rlx_ratio": speed(*ratios), "problem": None}
    refused = {"speed": None, "rlx_ratio": None, "problem": "torch\n  found: no memory"}
    mine = {"speed": speed(*(100 * ratio for ratio in ratios)), "rlx_ratio": None, "problem": None}
    work = {"name": "decode", "tokens": 64, "sequences": 1, "depth": 0, "unit": "tokens/s"}
    return {
        "works": [{**work, "systems": {"RLX": mine, "llama.cpp": peer, "torch-bf16": refused}}],
        "info": {"precision": "fast", "target": "avx2", "threads": 2},
        "peers": [{"name": "llama.cpp", "version": "abc"}, {"name": "openvino", "missing": "x", "fix": "y"}],
    }


def written(folder: Path, **results: object) -> str:
    for name, value in results.items():
        (folder / f"{name.replace('__', '.')}.json").write_text(json.dumps(value))
    write_document(folder, folder / "docs" / "benchmarks.md")
    return (folder / "docs" / "benchmarks.md").read_text()


def test_losses_and_failures_are_in_the_document(tmp_path):
    text = written(tmp_path, tiny__decode__t2=document(0.5, 0.75, 0.8))
    assert "| tiny (fast, avx2) | 2 | decode 64 | 75.0 | llama.cpp | 100.0 | **0.75** | 0.50 to 0.80 | 3 |" in text
    assert "| torch-bf16 | no figure: torch found: no memory |" in text
    assert "Versions: llama.cpp abc." in text
    assert "Not installed where this was measured: openvino." in text


def test_a_document_of_nothing(tmp_path):
    assert written(tmp_path).count("Not measured yet.") == 3


def test_kernels_and_limits(tmp_path):
    row = {
        "group": "rows", "name": "rope", "seconds": 2e-6, "bytes_per_second": 5e9, "operations_per_second": 3e9,
        "limit": "l2", "of_limit": 0.5, "plain_seconds": 1e-6, "torch_seconds": 8e-6, "error": 0.0, "is_right": True,
    }  # fmt: skip
    limits = {"threads": 1, "target": "avx2", "dram": 30.0, "l3": 1.0, "l2": 2.0, "f32": 3.0, "int8": 4.0, "bf16": None}
    text = written(tmp_path, kernels__t1={"runs": [{"limits": limits, "kernels": [row]}]})
    assert "| rope | 2.0 | 5.0 | 3.0 | 50% | l2 | **0.50** | 4.00 |" in text
    assert "memory 30.0" in text


def test_more_rounds_are_added():
    both = with_rounds_of(document(1.0, 2.0), document(3.0))  # type: ignore[arg-type]
    systems = both["works"][0]["systems"]
    assert systems["llama.cpp"]["rlx_ratio"]["values"] == [1.0, 2.0, 3.0]
    assert systems["llama.cpp"]["rlx_ratio"]["median"] == 2.0
    assert systems["torch-bf16"]["speed"] is None


def test_parts(tmp_path):
    (tmp_path / "m-Q4_0.gguf").touch()
    for name, kind in (("lm", "LlamaForCausalLM"), ("encoder", "BertModel")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [kind]}))
    parts = {part.name: part for part in parts_of(tmp_path)}
    assert {"kernels-few.t1", "m-Q4_0.decode.t2", "m-Q4_0.start", "lm.prefill.t1", "encoder.encode32-fast.t2"} <= set(
        parts
    )
    assert "torch" in parts["lm.prefill.t1"].flags
    assert "llama.cpp,ik_llama.cpp" in parts["m-Q4_0.decode.t2"].flags


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("print(1/0)",), "division by zero"),
        (("print('hello')",), "hello"),
        (("import time; time.sleep(60)",), "took longer"),
    ],
)
def test_a_part_that_fails_leaves_no_result(tmp_path, monkeypatch, flags, problem):
    (tmp_path / "played.py").write_text("import sys\nexec(sys.argv[1])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PART_SECONDS", 5)
    assert problem in (run_part(Part("a", "played", flags), tmp_path / "results", more=False) or "")
    assert not (tmp_path / "results" / "a.json").exists()


def test_a_part_keeps_its_command_without_folders(tmp_path, monkeypatch):
    (tmp_path / "played.py").write_text("print('{\"works\": []}')\n")
    monkeypatch.chdir(tmp_path)
    assert run_part(Part("a", "played", ("/home/somebody/m.gguf", "-t")), tmp_path, more=False) is None
    assert json.loads((tmp_path / "a.json").read_text())["command"] == "python -m played m.gguf -t --json".removesuffix(
        " --json"
    )
