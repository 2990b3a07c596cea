"""The tower that models of images, and of texts beside them, are: layers that normalise before what they do.

In: a `TowerConfig` with an image's side or a text's, and the stages of a head. Out: the flow

    image: patches -> embedding + positions, behind tokens that every image has ┐
    text:  tokens  -> embedding + positions                                     ┴-> (norm) -> layers -> (norm) -> head

An image's positions are an input: a table for the grid of its patches, which the runtime makes from the learned one
(`rlx/io/resample.py`), so that one program serves images of any size. Keys are those of `layer_shapes`,
`image_shapes` and `text_shapes`; a family maps them to the names in its files. Next: `vit.py`, `clip.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx.core.dim import Dim
from rlx.core.dtype import i32
from rlx.flow.blocks.activation import ActivationStage
from rlx.flow.blocks.gated_mlp import GatedKeys
from rlx.flow.blocks.gather import AddInputStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.learned_positions import LearnedPositionsStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.patch_embed import LayerScaleStage, PatchEmbedStage, PrefixTokensStage
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.self_attention import SelfAttentionStage
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.blocks.swiglu_mlp import SwiGluMlpStage
from rlx.flow.flow import ModelFlow
from rlx.flow.stage import BlockStage

PIXELS, GRID_POSITIONS = "pixels", "grid_positions"
"""Inputs of an image's flow."""
HIDDEN = "hidden"
"""The extra output of an image's flow: all rows of the last layer, after the last norm where the model has one."""
MAX_GRID = 512
"""Most patches along a side of an image."""
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """The layers of a tower.

    Attributes:
        activation: of the MLP, an op of `rlx/ops/elementwise.py`; a gated one is SwiGLU.
        qkv_bias: whether q, k and v have biases.
        layer_scale: whether each branch is multiplied by learned factors.
        gated: whether the MLP has a gate.
        causal: whether a row sees no later one.
        last_norm: whether all rows are normalised behind the layers.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    activation: str
    qkv_bias: bool = True
    layer_scale: bool = False
    gated: bool = False
    causal: bool = False
    last_norm: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSide:
    """How an image becomes rows.

    Attributes:
        image_size: height and width for which the positions were learned.
        patch_size: height and width of a patch.
        channels: of a pixel.
        has_cls: whether a CLS token stands before the patches.
        registers: how many registers stand behind it.
        patch_bias: whether the embedding of patches has a bias.
        first_norm: whether rows are normalised before the layers.
        antialias: whether positions for a smaller grid are an average over what they stand for.
    """

    image_size: int
    patch_size: int
    channels: int = 3
    has_cls: bool = True
    registers: int = 0
    patch_bias: bool = True
    first_norm: bool = False
    antialias: bool = False

    @property
    def grid(self) -> int:
        """Patches along a side of an image of `image_size`."""
        return self.image_size // self.patch_size

    @property
    def prefix(self) -> int:
        """Rows before the patches."""
        return int(self.has_cls) + self.registers


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSide:
    """How a text becomes rows."""

    vocab_size: int
    max_tokens: int


def image_flow(config: TowerConfig, side: ImageSide, head: BlockStage, name: str) -> ModelFlow:
    """pixels `f32[batch, channels, height, width]`, grid_positions `f32[patches, hidden]` to `f32[batch, 1, width]`."""
    batch, rows, columns = Dim("batch"), Dim("rows", max=MAX_GRID), Dim("columns", max=MAX_GRID)
    patch = side.patch_size
    flow = ModelFlow(name).input(PIXELS, (batch, side.channels, rows * patch, columns * patch))
    flow.input(GRID_POSITIONS, (rows * columns, config.hidden_size))
    flow.stage(PatchEmbedStage("patch.weight", patch, side.patch_bias)).stage(AddInputStage(GRID_POSITIONS))
    cls = [("cls", "cls_position")] if side.has_cls else []
    flow.stage(PrefixTokensStage((*cls, *([("registers",)] if side.registers else []))))
    if side.first_norm:
        flow.stage(LayerNormStage("first_norm.weight", config.norm_eps))
    return _layers(flow, config).tap(HIDDEN).named("head", head)


def text_flow(config: TowerConfig, side: TextSide, head: BlockStage, name: str) -> ModelFlow:
    """tokens `i32[batch, seq]` to `f32[batch, 1, width]`."""
    flow = ModelFlow(name).input("tokens", (Dim("batch"), Dim("seq", max=side.max_tokens)), i32)
    flow.token_embed("tokens.weight", shape=(side.vocab_size, config.hidden_size))
    flow.stage(LearnedPositionsStage("positions.weight", side.max_tokens))
    return _layers(flow, config).named("head", head)


def _layers(flow: ModelFlow, config: TowerConfig) -> ModelFlow:
    flow.repeat_layers(config.num_layers, lambda index: tower_layer(index, config))
    return flow.stage(LayerNormStage("norm.weight", config.norm_eps)) if config.last_norm else flow


def tower_layer(index: int, config: TowerConfig) -> SequenceStage:
    """`[batch, seq, hidden]` to the same: attention and MLP, each behind a norm and inside a residual."""
    prefix, heads = f"layers.{index}", config.num_heads
    q, k, v, o = (f"{prefix}.{part}.weight" for part in "qkvo")
    mask = MaskKind.causal() if config.causal else MaskKind.none()
    spec = SelfAttnPrefillSpec(q, k, v, heads, config.hidden_size // heads, heads, n_rot=0, mask=mask)
    return SequenceStage(
        SaveResidualStage(),
        LayerNormStage(f"{prefix}.norm1.weight", config.norm_eps),
        SelfAttentionStage(spec, o, qkv_bias=config.qkv_bias, o_bias=True),
        *([LayerScaleStage(f"{prefix}.scale1")] if config.layer_scale else []),
        AddResidualStage(),
        SaveResidualStage(),
        LayerNormStage(f"{prefix}.norm2.weight", config.norm_eps),
        mlp_stage(prefix, config),
        *([LayerScaleStage(f"{prefix}.scale2")] if config.layer_scale else []),
        AddResidualStage(),
    )


def mlp_stage(prefix: str, config: TowerConfig) -> BlockStage:
    """The MLP whose keys begin with `prefix`."""
    if config.gated:
        keys = GatedKeys(*(f"{prefix}.{part}.weight" for part in ("gate", "up", "down")))
        return SwiGluMlpStage(keys, bias=True, intermediate_size=config.intermediate_size)
    return SequenceStage(
        LinearStage(f"{prefix}.up.weight", bias=True),
        ActivationStage(config.activation),
        LinearStage(f"{prefix}.down.weight", bias=True),
    )


def layer_shapes(config: TowerConfig) -> Shapes:
    """Key of a layer's weight, without its prefix, to its shape."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: Shapes = {}
    for part in "qkvo":
        shapes[f"{part}.weight"] = (hidden, hidden)
        if part == "o" or config.qkv_bias:
            shapes[f"{part}.bias"] = (hidden,)
    shapes |= norm_shapes("norm1", hidden) | norm_shapes("norm2", hidden)
    for part in ("gate", "up") if config.gated else ("up",):
        shapes |= linear_shapes(part, inner, hidden)
    shapes |= linear_shapes("down", hidden, inner)
    return shapes | ({"scale1": (hidden,), "scale2": (hidden,)} if config.layer_scale else {})


def tower_shapes(config: TowerConfig) -> Shapes:
    """Key to shape of every weight of the layers, and of the norm behind them."""
    layer = layer_shapes(config)
    shapes = {f"layers.{i}.{part}": shape for i in range(config.num_layers) for part, shape in layer.items()}
    return shapes | (norm_shapes("norm", config.hidden_size) if config.last_norm else {})


def norm_shapes(key: str, width: int) -> Shapes:
    """Weight and bias of a layer norm."""
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def linear_shapes(key: str, out: int, width: int) -> Shapes:
    """Weight and bias of a linear layer."""
    return {f"{key}.weight": (out, width), f"{key}.bias": (out,)}
