"""What DESIGN section 5 shows of Python: models, executables, and the text of every level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlx
from rlx import DictWeights, Dim, GenerationResult, ModelFlow
from rlx.backends.reference import run_graph
from rlx.compiler import to_text
from rlx.core.dtype import f32, i32
from rlx.core.graph import Graph
from rlx.core.text import parse_graph, print_graph
from rlx.errors import InputError, RlxError, UnsupportedModelError
from rlx.flow.blocks import LinearStage
from rlx.lir.text import parse_program
from rlx.runtime.loaded_model import LoadedModel as Model
from tests.integration.small_gguf import CASE, small_gguf
from tests.references.seeded import seeded_tensor

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    path.write_bytes(small_gguf())
    with rlx.load(path, precision="exact", threads=2) as loaded:
        yield loaded


def test_generate(model: Model) -> None:
    result = model.generate(CASE.ids.tolist(), **GREEDY)
    assert isinstance(result, GenerationResult)
    assert list(result.tokens) == CASE.greedy[:12].tolist(), "transformers' continuation"
    assert result.prompt_tokens == tuple(CASE.ids.tolist())
    assert isinstance(result.text, str)
    assert str(result) == result.text
    assert (result.finish_reason, result.stop_reason) == ("length", "max_tokens")
    timings = result.timings
    assert (timings.prompt_tokens, timings.decode_tokens) == (24, 11)
    assert timings.prefill_seconds > 0
    assert timings.decode_seconds > 0
    assert timings.decode_tokens_per_second == pytest.approx(11 / timings.decode_seconds)


def test_stream_gives_the_same_text_in_pieces(model: Model) -> None:
    result = model.generate("Hello", **GREEDY)
    stream = model.stream("Hello", **GREEDY)
    pieces = list(stream)
    assert len(pieces) > 1
    assert all(pieces), "no empty piece"
    assert "".join(pieces) == result.text == stream.result.text
    assert stream.result.tokens == result.tokens
    "".join(pieces).encode("utf-8")  # no lone surrogate


def test_stop_strings_and_logprobs(model: Model) -> None:
    text = model.generate("Hello", **GREEDY).text
    stop = text[3:5]
    stopped = model.generate("Hello", **GREEDY, stop=stop)
    assert stopped.text == text[: text.index(stop)]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    result = model.generate(CASE.ids.tolist(), **GREEDY, logprobs=2)
    assert result.logprobs is not None
    assert [sampled.token for sampled in result.logprobs] == list(result.tokens)
    last = CASE.logits[-1].astype(np.float64)
    expected = last - np.log(np.exp(last - last.max()).sum()) - last.max()
    best = [(int(token), float(expected[token])) for token in np.argsort(-last)[:2]]
    assert [token for token, _ in result.logprobs[0].top] == [token for token, _ in best]
    for (_, found), (_, wanted) in zip(result.logprobs[0].top, best, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)  # the bar of the logits


def test_a_seed_gives_the_same_text_again(model: Model) -> None:
    drawn = [model.generate("Hello", max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].tokens == drawn[1].tokens != drawn[2].tokens
    free = model.generate("Hello", max_tokens=12, temperature=1.0)
    assert model.generate("Hello", max_tokens=12, temperature=1.0, seed=free.seed).tokens == free.tokens


def test_generate_batch_gives_what_each_gets_alone(model: Model) -> None:
    prompts = ["Hello", "a", "Some longer text, read in the same steps"]
    together = model.generate_batch(prompts, **GREEDY)
    assert [result.tokens for result in together] == [model.generate(p, **GREEDY).tokens for p in prompts]


def test_chat(model: Model) -> None:
    answer = model.chat([{"role": "user", "content": "Hi"}], **GREEDY)
    assert answer.prompt_tokens == tuple(model.tokenize("Hi\n", add_special=False))
    assert answer.tokens == model.generate(list(answer.prompt_tokens), **GREEDY).tokens


def test_logits(model: Model) -> None:
    logits = model.logits(CASE.ids)
    assert (logits.dtype, logits.shape) == (np.dtype(np.float32), (24, 300))
    assert np.abs(logits - CASE.logits).max() <= 1e-4  # the bar of test_tiny_llama.py
    assert np.array_equal(model.logits(CASE.ids.tolist()), logits)


def test_what_a_model_says_of_itself(model: Model) -> None:
    assert (model.vocab_size, model.context) == (300, 128)
    assert model.info["architecture"] == "llama"
    assert model.info["parameters"] == sum(array.size for array in CASE.weights().values())
    assert "llama" in repr(model)


# Executables: any flow or graph, not only language models.

N, WIDTH = Dim("n", max=1000), 32
WEIGHTS = {"w.weight": seeded_tensor("w", (8, WIDTH), 1, 0.2), "w.bias": seeded_tensor("b", (8,), 1)}
X = seeded_tensor("x", (5, WIDTH), 1)


def small_flow() -> ModelFlow:
    flow = ModelFlow("small").input("x", (N, WIDTH)).tap("before")
    return flow.stage(LinearStage("w.weight", bias=True)).soft_cap(2.0)


def expected() -> Any:
    wide = {name: array.astype(np.float64) for name, array in WEIGHTS.items()}
    return 2 * np.tanh((X @ wide["w.weight"].T + wide["w.bias"]) / 2)


@pytest.mark.parametrize("weights", [WEIGHTS, DictWeights(WEIGHTS)], ids=["mapping", "source"])
def test_compile_a_flow(weights: Any) -> None:
    exe = rlx.compile(small_flow(), weights)
    results = exe(x=X)
    assert set(results) == {"output", "before"}
    # sums of 32 products of size one in float32
    np.testing.assert_allclose(results["output"], expected(), atol=1e-5)
    np.testing.assert_array_equal(results["before"], X)
    assert exe(x=X[:1])["output"].shape == (1, 8)
    assert all(array.dtype == np.float32 for array in results.values())
    exe.close()


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_compile_a_graph(target: str) -> None:
    graph = small_flow().build(DictWeights(WEIGHTS))
    exe = rlx.compile(graph, WEIGHTS, target=target, threads=1)
    np.testing.assert_allclose(exe(x=X)["output"], expected(), atol=1e-5)
    exe.close()


def test_compile_a_graph_from_its_text() -> None:
    text = print_graph(small_flow().build(DictWeights(WEIGHTS)))
    exe = rlx.compile(parse_graph(text), WEIGHTS)
    np.testing.assert_allclose(exe(x=X)["output"], expected(), atol=1e-5)
    exe.close()


def test_the_text_of_every_level() -> None:
    exe = rlx.compile(small_flow(), WEIGHTS)
    assert list(exe.text) == ["hir", "mir", "lir", "llvm", "asm"]
    texts = dict(exe.text)
    for level in ("hir", "mir"):
        parsed = parse_graph(texts[level])
        assert print_graph(parsed) == texts[level]
        # the text means what the flow means, on the interpreter
        run = run_graph(parsed, {"x": X}, DictWeights(WEIGHTS))
        np.testing.assert_allclose(run["output"], expected(), atol=1e-12)
    assert "linear" in texts["hir"]
    program = parse_program(texts["lir"])
    assert to_text(program) == texts["lir"]
    assert len(program.steps) >= 1
    assert "define" in texts["llvm"]
    for kernel in program.kernels:
        assert f"_{kernel.op}_{kernel.variant}" in texts["llvm"]
        assert f"_{kernel.op}_{kernel.variant}" in texts["asm"]
    with pytest.raises(KeyError):
        _ = exe.text["c"]
    exe.close()


def test_texts_say_which_block_emitted_a_node() -> None:
    exe = rlx.compile(small_flow(), WEIGHTS)
    for level in ("hir", "mir", "lir"):
        assert "linear.py:" in exe.text[level]
    exe.close()


def test_refusals_of_an_executable() -> None:
    exe = rlx.compile(small_flow(), WEIGHTS)
    for inputs in ({}, {"x": X, "y": X}, {"x": X.astype(np.int32)}, {"x": X[:, :-1]}, {"x": X[0]}, {"x": [[1.0]]}):
        with pytest.raises(InputError):
            exe(**inputs)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="1001"):
        exe(x=np.zeros((1001, WIDTH), np.float32))
    exe.close()
    with pytest.raises(RlxError):
        rlx.compile(small_flow(), {})
    with pytest.raises(RlxError, match="abacus"):
        rlx.compile(small_flow(), WEIGHTS, target="abacus")


def test_an_index_out_of_its_table_is_refused() -> None:
    flow = ModelFlow("lookup").input("tokens", (N,), i32).token_embed("w.weight")
    exe = rlx.compile(flow, WEIGHTS)
    np.testing.assert_array_equal(exe(tokens=np.array([7, 0], np.int32))["output"], WEIGHTS["w.weight"][[7, 0]])
    for bad in (8, -1, 2**31 - 1):
        with pytest.raises(InputError, match="index"):
            exe(tokens=np.array([0, bad], np.int32))
    exe.close()


def test_inputs_stay_the_callers_own() -> None:
    exe = rlx.compile(ModelFlow("cap").input("x", (N, WIDTH), f32).soft_cap(1.0))
    x = X.copy()
    first = exe(x=x)["output"]
    kept = first.copy()
    exe(x=2 * x)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(first, kept)
    exe.close()


def test_dump_writes_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLX_DUMP", str(tmp_path / "dump"))
    rlx.compile(small_flow(), WEIGHTS).close()
    files = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert {name.split("-")[1] for name in files} >= {"hir", "mir", "lir", "llvm.ll", "asm.s"}
    assert "define" in next((tmp_path / "dump").glob("*.ll")).read_text()
    assert "rlx_run" in next((tmp_path / "dump").glob("*.s")).read_text()
    for path in (tmp_path / "dump").glob("*.txt"):
        text = path.read_text()
        again = parse_program(text) if "-lir-" in path.name else parse_graph(text)
        assert to_text(again) == text
        assert isinstance(again, Graph) or "-lir-" in path.name


def test_what_a_language_model_lacks_is_one_clear_error(model: Model) -> None:
    assert not hasattr(model, "embed")
    assert not hasattr(model, "no_such_thing")
    with pytest.raises(UnsupportedModelError, match="cannot make vectors of texts"):
        model.embed(["a"])
    with pytest.raises(UnsupportedModelError, match="cannot score pairs"):
        model.rerank("a", ["b"])
