"""Flows: weights both ways, side state, blocks by their formula, locations, and each refusal by its message."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.reference import run_graph
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32, q8_0
from rlx.core.graph import Graph, Node, Value
from rlx.core.storage import decode, encode
from rlx.core.text import parse_graph, print_graph
from rlx.core.type import TensorType
from rlx.errors import FlowError, MissingTensorError, RlxError, TensorShapeError, UnsupportedModelError
from rlx.flow import BlockStage, DictWeights, FlowCtx, FlowValue, ModelFlow
from rlx.flow.blocks import (
    AddInputStage,
    AddResidualStage,
    CustomStage,
    GatedKeys,
    GatherAddStage,
    GatherStage,
    GeGluMlpStage,
    GeluMlpStage,
    LastTokenStage,
    LayerNormStage,
    LinearStage,
    LmHeadStage,
    NamedStage,
    RmsNormStage,
    SaveResidualStage,
    SaveStreamStage,
    SequenceStage,
    SoftCapStage,
    SwiGluMlpStage,
    TapStage,
    TokenEmbedStage,
    UseStreamStage,
)
from rlx.ops.op import Emitter
from tests.references.seeded import seeded_tensor

BATCH, SEQ = Dim("batch"), Dim("seq", max=64)
HIDDEN, INNER = 6, 10
X = seeded_tensor("x", (2, 3, HIDDEN), 7).astype(np.float64)


def weight(name: str, *shape: int) -> NDArray[np.float32]:
    return seeded_tensor(name, shape, 7)


WEIGHTS = {
    "a.norm.weight": weight("norm", HIDDEN),
    "a.norm.bias": weight("norm.bias", HIDDEN),
    "mlp.gate_proj.weight": weight("gate", INNER, HIDDEN),
    "mlp.up_proj.weight": weight("up", INNER, HIDDEN),
    "mlp.down_proj.weight": weight("down", HIDDEN, INNER),
    "mlp.gate_proj.bias": weight("gate.bias", INNER),
    "mlp.up_proj.bias": weight("up.bias", INNER),
    "mlp.down_proj.bias": weight("down.bias", HIDDEN),
    "table.weight": weight("table", 5, HIDDEN),
}
KEYS = GatedKeys("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")


def run_stage(stage: BlockStage, weights: Any = None, **extra: NDArray[Any]) -> NDArray[Any]:
    source = DictWeights(weights or WEIGHTS)
    flow = ModelFlow("blocks").input("x", (BATCH, SEQ, HIDDEN))
    for name, array in extra.items():
        flow.input(name, (BATCH, SEQ, *array.shape[2:]), i32 if array.dtype == np.int32 else f32)
    return run_graph(flow.stage(stage).build(source), {"x": X, **extra}, source)["output"]


def rms(x: NDArray[Any], eps: float) -> NDArray[Any]:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def linear(x: NDArray[Any], name: str, bias: bool = False) -> NDArray[Any]:
    return x @ WEIGHTS[f"{name}.weight"].T.astype(np.float64) + (WEIGHTS[f"{name}.bias"] if bias else 0)


def silu(x: NDArray[Any]) -> NDArray[Any]:
    return x / (1 + np.exp(-x))


def gelu(x: NDArray[Any]) -> NDArray[Any]:
    return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


def gelu_tanh(x: NDArray[Any]) -> NDArray[Any]:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gated(activation: Any, bias: bool) -> NDArray[Any]:
    inner = activation(linear(X, "mlp.gate_proj", bias)) * linear(X, "mlp.up_proj", bias)
    return linear(inner, "mlp.down_proj", bias)


def layer_normed() -> NDArray[Any]:
    centred = X - X.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * WEIGHTS["a.norm.weight"]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (RmsNormStage("a.norm.weight", 1e-5), lambda: rms(X, 1e-5) * WEIGHTS["a.norm.weight"]),
        (RmsNormStage("a.norm.weight", 0.5, True), lambda: rms(X, 0.5) * (1 + WEIGHTS["a.norm.weight"].astype(float))),
        (LayerNormStage("a.norm.weight", 1e-5), lambda: layer_normed() + WEIGHTS["a.norm.bias"]),
        (LayerNormStage("a.norm.weight", 1e-5, bias=False), layer_normed),
        (LinearStage("mlp.up_proj.weight"), lambda: linear(X, "mlp.up_proj")),
        (LinearStage("mlp.up_proj.weight", bias=True), lambda: linear(X, "mlp.up_proj", True)),
        (SwiGluMlpStage(KEYS), lambda: gated(silu, False)),
        (SwiGluMlpStage(KEYS, bias=True), lambda: gated(silu, True)),
        (GeGluMlpStage(KEYS), lambda: gated(gelu_tanh, False)),
        (GeGluMlpStage(KEYS, approximate=False), lambda: gated(gelu, False)),
        (
            GeluMlpStage("mlp.up_proj.weight", "mlp.down_proj.weight"),
            lambda: linear(gelu(linear(X, "mlp.up_proj", True)), "mlp.down_proj", True),
        ),
        (SoftCapStage(0.5), lambda: 0.5 * np.tanh(X / 0.5)),
        (SoftCapStage(0.0), lambda: X),
        (SoftCapStage(None), lambda: X),
        (LastTokenStage(), lambda: X[:, -1:]),
        (SequenceStage(SaveResidualStage(), SoftCapStage(1.0), AddResidualStage()), lambda: X + np.tanh(X)),
        (SequenceStage(SaveResidualStage(), SoftCapStage(1.0), AddResidualStage(0.25)), lambda: X + np.tanh(X) / 4),
        (
            SequenceStage(SaveStreamStage("early"), SoftCapStage(1.0), UseStreamStage("early")),
            lambda: X,
        ),
    ],
)
def test_a_block_is_its_formula(stage: BlockStage, expected: Any) -> None:
    np.testing.assert_allclose(run_stage(stage), expected(), atol=1e-12)


def test_blocks_that_read_an_input() -> None:
    index = np.array([[0, 4, 1], [2, 2, 3]], np.int32)
    rows = WEIGHTS["table.weight"][index].astype(np.float64)
    extra = seeded_tensor("extra", (2, 3, HIDDEN), 3)
    np.testing.assert_allclose(run_stage(GatherStage("kinds", "table.weight", 2.0), kinds=index), 2 * rows, atol=1e-12)
    np.testing.assert_allclose(run_stage(GatherAddStage("kinds", "table.weight"), kinds=index), X + rows, atol=1e-12)
    np.testing.assert_allclose(run_stage(AddInputStage("extra"), extra=extra), X + extra, atol=1e-12)
    with pytest.raises(FlowError, match="nothing is named 'absent'"):
        run_stage(AddInputStage("absent"))


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head(tied: bool) -> None:
    table, head = weight("embed", 9, HIDDEN), weight("head", 9, HIDDEN)
    weights = DictWeights({"model.embed_tokens.weight": table, "lm_head.weight": head})
    flow = ModelFlow("lm").input("tokens", (BATCH, SEQ), i32).token_embed(scale=2.0)
    graph = flow.lm_head(9, HIDDEN, tied=tied).soft_cap(3.0).build(weights)
    tokens = np.array([[1, 8, 0]], np.int32)
    logits = 2.0 * table[tokens].astype(np.float64) @ (table if tied else head).T
    np.testing.assert_allclose(
        run_graph(graph, {"tokens": tokens}, weights)["logits"], 3 * np.tanh(logits / 3), atol=1e-12
    )
    assert len(list(graph.parameters())) == (1 if tied else 2)


class Product:
    """x times a weight read either way, or both."""

    def __init__(self, *ways: bool) -> None:
        self.ways = ways

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        for transpose in self.ways:
            input = ctx.matmul(input, ctx.load_param("w", transpose=transpose))
        return input


@pytest.mark.parametrize("packed", [False, True])
def test_a_weight_is_read_both_ways_from_one_node(packed: bool) -> None:
    matrix = weight("w", 32, 32)
    weights = DictWeights({"w": matrix})
    if packed:
        raw = encode(q8_0, matrix)
        weights, matrix = DictWeights({"w": (TensorType(q8_0, (32, 32)), raw.tobytes())}), decode(q8_0, raw, (32, 32))
    graph = ModelFlow("both").input("x", (SEQ, 32)).stage(Product(True, False)).build(weights)
    ops = [node.op for node in graph.nodes]
    assert ops == ["parameter", "linear", *(["dequantize"] if packed else []), "matmul"]
    x = weight("x", 4, 32).astype(np.float64)
    found = run_graph(graph, {"x": x}, weights)["output"]
    np.testing.assert_allclose(found, x @ matrix.T.astype(float) @ matrix.astype(float), atol=1e-10)


def test_an_operand_says_the_shape_its_reader_sees() -> None:
    class Look:
        def emit(self, ctx: FlowCtx, input: FlowValue) -> None:
            plain, transposed = ctx.load_param("w"), ctx.load_param("w", transpose=True)
            assert (plain.shape, transposed.shape) == ((4, 3), (3, 4))
            assert plain.value is transposed.value

    ModelFlow("look").input("x", (SEQ, 3)).stage(Look()).build(DictWeights({"w": weight("w", 4, 3)}))


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_small_weights_in_half_precision_are_dequantised(dtype: Any) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    half = WEIGHTS["a.norm.weight"].astype(kind)
    found = run_stage(RmsNormStage("a.norm.weight", 1e-5), {"a.norm.weight": half})
    np.testing.assert_allclose(found, rms(X, 1e-5) * half.astype(np.float64), atol=1e-12)


def flow_with(*stages: BlockStage) -> Graph:
    flow = ModelFlow("refused").input("x", (BATCH, SEQ, HIDDEN))
    return flow.sequence(*stages).build(DictWeights(WEIGHTS))


def returns_text(emit: Emitter, value: Value) -> Any:
    return "not a value"


class ReturnsValue:
    def emit(self, ctx: FlowCtx, input: FlowValue) -> Any:
        return input.value


@pytest.mark.parametrize(
    ("stages", "error", "facts"),
    [
        ([AddResidualStage()], FlowError, ["residual is added that was not saved", "SaveResidualStage()"]),
        ([SaveResidualStage()], FlowError, ["residuals of the flow are not balanced", "1 saved", "AddResidualStage()"]),
        ([UseStreamStage("vision")], FlowError, ["no stream called 'vision'", "SaveStreamStage('vision')"]),
        ([TapStage("t"), TapStage("t")], FlowError, ["two taps are called 't'"]),
        ([TapStage("output")], FlowError, ["a tap has the name of the output"]),
        ([RmsNormStage("b.norm.weight", 1e-5)], MissingTensorError, ["b.norm.weight", "norm ("]),
        ([RmsNormStage("table.weight", 1e-5)], TensorShapeError, ["table.weight", "[5, 6]", "[6]"]),
        ([LinearStage("mlp.down_proj.weight")], TensorShapeError, ["mlp.down_proj.weight", "[10, 6]", "[6, out]"]),
        ([LinearStage("a.norm.weight")], TensorShapeError, ["a.norm.weight", "matrix"]),
        ([TokenEmbedStage("table.weight")], FlowError, ["an embedding takes token ids", "f32[batch, seq, 6]"]),
        ([LmHeadStage(6, 5, key="table.weight")], TensorShapeError, ["[5, 6]", "[6, 5]"]),
        ([CustomStage(returns_text)], FlowError, ["a custom function gives a graph value or None", "str"]),
        ([ReturnsValue()], FlowError, ["a stage gives a FlowValue or None", "ctx.wrap"]),
        ([lambda ctx, x: x], FlowError, ["a stage needs a method emit", "custom(...)"]),
    ],
)
def test_refusals(stages: list[Any], error: type[RlxError], facts: list[str]) -> None:
    with pytest.raises(error) as raised:
        flow_with(*stages)
    for fact in facts:
        assert fact in str(raised.value)


def test_a_layer_that_does_not_balance_its_residuals_is_named() -> None:
    flow = ModelFlow("refused").input("x", (SEQ, HIDDEN))
    flow.repeat_layers(3, lambda i: SequenceStage(*[SaveResidualStage()] * (i == 1)))
    with pytest.raises(FlowError, match=r"residuals of layers\.1 are not balanced"):
        flow.build()


def test_a_weight_type_without_arithmetic_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="f64"):
        run_stage(RmsNormStage("a.norm.weight", 1e-5), {"a.norm.weight": WEIGHTS["a.norm.weight"].astype(np.float64)})


def test_a_flow_without_inputs_or_with_two_of_one_name_is_refused() -> None:
    with pytest.raises(FlowError, match="needs an input"):
        ModelFlow("empty").build()
    with pytest.raises(FlowError, match="two inputs are called 'x'"):
        ModelFlow("twice").input("x", (SEQ,)).input("x", (SEQ,))


def locations(graph: Graph) -> dict[str, str]:
    def text(node: Node) -> str:
        return f"{node.location.path} {node.location.source.split(':')[0]}"

    return {node.op: text(node) for node in graph.nodes}


def test_nodes_know_their_block_and_its_source() -> None:
    flow = ModelFlow("located").input("x", (BATCH, SEQ, HIDDEN))
    layer = SequenceStage(RmsNormStage("a.norm.weight", 1e-5), NamedStage("ffn", SwiGluMlpStage(KEYS)))
    flow.repeat_layers(2, lambda _: layer).custom(lambda emit, x: emit("tanh", x), "squash")
    found = locations(flow.build(DictWeights(WEIGHTS)))
    assert found["rms_norm"] == "layers.1.norm rms_norm.py"
    assert found["swiglu"] == "layers.1.ffn.mlp swiglu_mlp.py"
    assert found["tanh"] == "squash test_flow.py"


def test_the_escape_hatch_gets_the_builder_and_the_value() -> None:
    def double(emit: Emitter, value: Value) -> Value:
        assert emit.builder.inputs[0] == ("x", value)
        return emit("add", value, value)

    graph = ModelFlow("hatch").input("x", (SEQ, 3)).custom(double).build()
    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.testing.assert_array_equal(run_graph(graph, {"x": x})["output"], 2 * x)


def test_taps_are_outputs_and_the_text_parses_back() -> None:
    flow = ModelFlow("tapped").input("x", (SEQ, HIDDEN)).tap("before").soft_cap(1.0)
    graph = flow.build()
    assert [name for name, _ in graph.outputs] == ["output", "before"]
    text = print_graph(graph)
    assert print_graph(parse_graph(text)) == text


def test_building_twice_gives_the_same_graph() -> None:
    flow = ModelFlow("twice").input("x", (BATCH, SEQ, HIDDEN)).stage(SwiGluMlpStage(KEYS))
    weights = DictWeights(WEIGHTS)
    assert print_graph(flow.build(weights)) == print_graph(flow.build(weights))


def test_a_bias_of_another_shape_is_refused() -> None:
    weights = {**WEIGHTS, "mlp.up_proj.bias": weight("short", 4)}
    with pytest.raises(TensorShapeError, match=r"mlp\.up_proj\.bias"):
        run_stage(LinearStage("mlp.up_proj.weight", bias=True), weights)
