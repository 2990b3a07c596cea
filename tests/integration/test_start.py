"""Starting: what `import rlx` loads, what a second start compiles, and how often one graph is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlx
from rlx import Dim
from rlx.backends.cpu import codegen
from rlx.core.dtype import i32
from rlx.flow import DictWeights, ModelFlow
from tests.integration.command import ROOT, environment
from tests.integration.small_gguf import CASE, small_gguf
from tests.integration.tiny import recipe_of
from tests.models.checkpoints import write_folder

HEAVY = (
    "numpy", "llvmlite", "ml_dtypes", "safetensors", "tokenizers", "huggingface_hub", "jinja2", "typer", "rich",
    "torch", "transformers", "gguf",
)  # fmt: skip


def python(code: str, **changes: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(**changes),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, rlx; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    assert not set(python(code).split()) & set(HEAVY)


def test_every_public_name_is_there() -> None:
    assert len(rlx.__all__) <= 25
    for name in rlx.__all__:
        assert getattr(rlx, name) is not None
    assert set(rlx.__all__) <= set(dir(rlx))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = rlx.no_such_name


def test_generating_imports_no_reference(tmp_path: Path) -> None:
    """Torch and transformers are references of the tests: a model runs without them, and does not look for them."""
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    code = f"""
import sys
for name in ("torch", "transformers", "gguf", "llama_cpp"):
    sys.modules[name] = None
import rlx
with rlx.load({str(path)!r}) as model:
    print(len(model.generate("Hello", max_tokens=3, temperature=0, ignore_eos=True).tokens))
"""
    assert python(code).split() == ["3"]


def test_the_second_start_compiles_nothing(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    with rlx.load(path) as model:
        assert model.info["cache"] == "cold"
        assert isinstance(model.info["compile_seconds"], float)
        assert model.info["compile_seconds"] > 0
        cold = model.logits(CASE.ids)

    def refuse(*_: Any) -> bytes:
        raise AssertionError("a warm start compiled")

    monkeypatch.setattr(codegen, "compile_module", refuse)
    with rlx.load(path) as model:
        assert model.info["cache"] == "warm"
        assert model.info["compile_seconds"] == 0
        assert np.array_equal(model.logits(CASE.ids), cold)
    with pytest.raises(AssertionError, match="a warm start compiled"):
        rlx.load(path, target="portable")


def test_a_warm_start_in_another_process_is_warm(empty_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    code = f"import rlx; print(rlx.load({str(path)!r}).info['cache'])"
    assert [python(code, RLX_CACHE_DIR=str(empty_cache)).strip() for _ in range(2)] == ["cold", "warm"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_object_is_compiled_anew(damage: str, empty_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    with rlx.load(path) as model:
        expected = model.logits(CASE.ids)
    (entry,) = [file for file in empty_cache.rglob("*") if file.is_file()]
    content = entry.read_bytes()
    entry.write_bytes({"truncated": content[:-100], "garbage": content[::-1], "empty": b""}[damage])
    with rlx.load(path) as model:
        assert model.info["cache"] == "cold"
        assert np.array_equal(model.logits(CASE.ids), expected)
    assert entry.read_bytes()[:64] == content[:64]


def test_one_compilation_serves_every_length_and_batch(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    compile_module = codegen.compile_module

    def counted(kernels: Any, target: Any) -> bytes:
        calls.append(len(kernels))
        return compile_module(kernels, target)

    monkeypatch.setattr(codegen, "compile_module", counted)
    recipe = recipe_of(write_folder(tmp_path, CASE.config, CASE.weights()))
    exe = rlx.compile(recipe.flow, recipe.weights, precision="exact", threads=2)
    for batch, length in ((1, 1), (1, 24), (3, 5), (2, 23), (5, 24)):
        ids = np.tile(CASE.ids[:length], (batch, 1))
        logits = exe(tokens=ids)["logits"]
        assert logits.shape == (batch, length, 300)
        assert np.abs(logits - CASE.logits[:length]).max() <= 1e-4  # the bar of test_tiny_llama.py
    exe.close()
    assert len(calls) == 1


def test_layers_share_their_kernels(tmp_path: Path) -> None:
    """A block that repeats is compiled once: twice the layers, the same kernels."""
    batch, seq = Dim("batch"), Dim("seq", max=64)
    weights = DictWeights({f"norm.{i}": np.ones(16, np.float32) for i in range(6)} | {"e": np.ones((9, 16), "f4")})

    def kernels(count: int) -> int:
        from rlx.flow.blocks import RmsNormStage

        flow = ModelFlow("deep").input("tokens", (batch, seq), i32).token_embed("e")
        flow.repeat_layers(count, lambda i: RmsNormStage(f"norm.{i}", 1e-5))
        exe = rlx.compile(flow, weights)
        assert isinstance(exe, rlx.Executable)
        exe.close()
        return len(exe.program.kernels)

    assert kernels(2) == kernels(6)
