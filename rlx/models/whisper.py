"""Whisper: an encoder of log-mel frames, and a decoder of text that attends to it.

In: sizes, or a config.json. Out: the two flows,

    mel f32[batch, frames, mel_bins] -> two convolutions, positions -> pre-norm layers -> norm -> states
    tokens i32[batch, seq], source f32[batch, frames / 2, hidden] -> pre-norm layers with cross attention -> logits

Keys of weights are those of a Hugging Face folder. Source: transformers' modeling_whisper. Next:
`whisper_ctranslate2.py`, the other format; `speech.py`, which makes a recipe of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.flow.blocks.activation import ActivationStage
from rlx.flow.blocks.convolution import Conv1dStage
from rlx.flow.blocks.cross_attention import CrossAttentionStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.learned_positions import LearnedPositionsStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.lm_head import LmHeadStage
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.self_attention import SelfAttentionStage
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.blocks.token_embed import TokenEmbedStage
from rlx.flow.flow import ModelFlow
from rlx.flow.stage import BlockStage
from rlx.flow.tensor_part import TensorPart
from rlx.io.checkpoint import Checkpoint
from rlx.models.encoder_family import ACTIVATIONS
from rlx.models.fields import Fields

NORM_EPS = 1e-5
"""Of torch.nn.LayerNorm; no configuration changes it."""
KERNEL, STRIDE = 3, 2
"""Of the convolutions; the second one halves the frames."""
EMBEDDING = "model.decoder.embed_tokens.weight"
POSITIONS = "embed_positions.weight"
CONVOLUTIONS = ("model.encoder.conv1", "model.encoder.conv2")

# Fields that carry no computation: how the model was trained, what transformers' generation does with it (which
# generation_config.json says better), word timestamps. transformers computes with no `scale_embedding` either.
NO_COMPUTATION = frozenset(
    (
        "_attn_implementation_autoset", "_name_or_path", "activation_dropout", "alignment_heads", "apply_spec_augment",
        "architectures", "attention_dropout", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
        "classifier_proj_size", "decoder_layerdrop", "decoder_start_token_id", "dropout", "dtype", "encoder_layerdrop",
        "eos_token_id", "finetuning_task", "forced_decoder_ids", "id2label", "init_std", "label2id",
        "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob", "mask_time_length",
        "mask_time_min_masks", "mask_time_prob", "max_length", "median_filter_width", "model_type",
        "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "scale_embedding",
        "suppress_tokens", "torch_dtype", "transformers_version", "use_cache", "use_weighted_layer_sum",
    )
)  # fmt: skip
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "is_encoder_decoder": (None, True),
    "num_hidden_layers": (None,),
    "quantization_config": (None,),
    "auto_map": (None,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperConfig:
    """The sizes of a Whisper.

    Attributes:
        mel_bins: numbers in a frame of audio.
        source_positions: rows that the encoder makes of a window, half as many as it has frames.
        target_positions: most tokens of a window, the prompt included.
        activation: of the MLPs, an op.
        tied: the head reads the embedding table.
    """

    vocab_size: int
    mel_bins: int
    hidden_size: int
    encoder_layers: int
    encoder_heads: int
    encoder_intermediate: int
    decoder_layers: int
    decoder_heads: int
    decoder_intermediate: int
    source_positions: int
    target_positions: int
    activation: str = "gelu"
    tied: bool = True

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return STRIDE * self.source_positions


def whisper_from_hf(fields: Fields) -> WhisperConfig:
    """config.json of a Whisper.

    Raises:
        UnsupportedModelError: a field is missing, malformed, unknown, or asks for another computation.
    """
    config = WhisperConfig(
        vocab_size=fields.integer("vocab_size", 51865),
        mel_bins=fields.integer("num_mel_bins", 80),
        hidden_size=fields.integer("d_model", 384),
        encoder_layers=fields.integer("encoder_layers", 4),
        encoder_heads=fields.integer("encoder_attention_heads", 6),
        encoder_intermediate=fields.integer("encoder_ffn_dim", 1536),
        decoder_layers=fields.integer("decoder_layers", 4),
        decoder_heads=fields.integer("decoder_attention_heads", 6),
        decoder_intermediate=fields.integer("decoder_ffn_dim", 1536),
        source_positions=fields.integer("max_source_positions", 1500),
        target_positions=fields.integer("max_target_positions", 448),
        activation=fields.choice("activation_function", ACTIVATIONS, "gelu"),
        tied=fields.flag("tie_word_embeddings", True),
    )
    for name, heads in (
        ("encoder_attention_heads", config.encoder_heads),
        ("decoder_attention_heads", config.decoder_heads),
    ):
        if config.hidden_size % heads:
            fields.refuse(name, f"a divisor of {config.hidden_size}")
    fields.refuse_unread(lambda name: name in NO_COMPUTATION, NEUTRAL)
    return config


def encoder_flow(config: WhisperConfig) -> ModelFlow:
    """mel `f32[batch, frames, mel_bins]` to states `f32[batch, source_positions, hidden]`."""
    flow = ModelFlow("encoder").input("mel", (Dim("batch"), config.frames, config.mel_bins), f32)
    first, second = (f"{name}.weight" for name in CONVOLUTIONS)
    activation = ActivationStage("gelu")  # whatever the MLPs have
    flow.sequence(
        Conv1dStage(first, config.hidden_size, KERNEL, padding=1),
        activation,
        Conv1dStage(second, config.hidden_size, KERNEL, STRIDE, padding=1),
        activation,
        LearnedPositionsStage(f"model.encoder.{POSITIONS}", config.source_positions),
    )
    flow.repeat_layers(config.encoder_layers, lambda index: _encoder_layer(f"model.encoder.layers.{index}", config))
    return flow.stage(LayerNormStage("model.encoder.layer_norm.weight", NORM_EPS))


def decoder_flow(config: WhisperConfig) -> ModelFlow:
    """tokens `i32[batch, seq]` and source `f32[batch, frames, hidden]` to logits `f32[batch, seq, vocab]`."""
    batch, shape = Dim("batch"), (config.vocab_size, config.hidden_size)
    flow = ModelFlow("decoder").input("tokens", (batch, Dim("seq", max=config.target_positions)), i32)
    flow.input("source", (batch, Dim("frames", max=config.source_positions), config.hidden_size), f32)
    flow.stage(TokenEmbedStage(EMBEDDING, shape=shape))
    flow.stage(LearnedPositionsStage(f"model.decoder.{POSITIONS}", config.target_positions))
    flow.repeat_layers(config.decoder_layers, lambda index: _decoder_layer(f"model.decoder.layers.{index}", config))
    flow.stage(LayerNormStage("model.decoder.layer_norm.weight", NORM_EPS))
    return flow.stage(LmHeadStage(*shape, tied=config.tied, key="proj_out.weight", embed_key=EMBEDDING))


def _branch(norm: str, *stages: BlockStage) -> SequenceStage:
    """Stages of the normed input, added to the input."""
    return SequenceStage(SaveResidualStage(), LayerNormStage(f"{norm}.weight", NORM_EPS), *stages, AddResidualStage())


def _self_attention(prefix: str, num_heads: int, config: WhisperConfig, mask: MaskKind) -> SequenceStage:
    head_dim, key = config.hidden_size // num_heads, f"{prefix}.self_attn"
    q, k, v = (f"{key}.{letter}_proj.weight" for letter in "qkv")
    spec = SelfAttnPrefillSpec(q, k, v, num_heads, head_dim, num_heads, n_rot=0, mask=mask)
    stage = SelfAttentionStage(spec, f"{key}.out_proj.weight", qkv_bias=True, o_bias=True, k_bias=False)
    return _branch(f"{prefix}.self_attn_layer_norm", stage)


def _mlp(prefix: str, config: WhisperConfig) -> SequenceStage:
    return _branch(
        f"{prefix}.final_layer_norm",
        LinearStage(f"{prefix}.fc1.weight", bias=True),
        ActivationStage(config.activation),
        LinearStage(f"{prefix}.fc2.weight", bias=True),
    )


def _encoder_layer(prefix: str, config: WhisperConfig) -> SequenceStage:
    return SequenceStage(_self_attention(prefix, config.encoder_heads, config, MaskKind.none()), _mlp(prefix, config))


def _decoder_layer(prefix: str, config: WhisperConfig) -> SequenceStage:
    head_dim = config.hidden_size // config.decoder_heads
    cross = CrossAttentionStage(f"{prefix}.encoder_attn", config.decoder_heads, head_dim)
    return SequenceStage(
        _self_attention(prefix, config.decoder_heads, config, MaskKind.causal()),
        _branch(f"{prefix}.encoder_attn_layer_norm", cross),
        _mlp(prefix, config),
    )


def keys_of(config: WhisperConfig) -> list[str]:
    """Every key that the flows read."""
    keys = [EMBEDDING, *(f"model.{side}.{POSITIONS}" for side in ("encoder", "decoder"))]
    norms = ["model.encoder.layer_norm", "model.decoder.layer_norm"]
    linear = list(CONVOLUTIONS)
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        attentions = ("self_attn",) if side == "encoder" else ("self_attn", "encoder_attn")
        for prefix in (f"model.{side}.layers.{index}" for index in range(layers)):
            norms += [f"{prefix}.{name}" for name in (*(f"{a}_layer_norm" for a in attentions), "final_layer_norm")]
            linear += [f"{prefix}.{a}.{part}_proj" for a in attentions for part in ("q", "v", "out")]
            linear += [f"{prefix}.fc1", f"{prefix}.fc2"]
            keys += [f"{prefix}.{a}.k_proj.weight" for a in attentions]
    keys += [f"{name}.{kind}" for name in (*norms, *linear) for kind in ("weight", "bias")]
    return keys if config.tied else [*keys, "proj_out.weight"]


def convolution_channels(config: WhisperConfig) -> dict[str, tuple[int, int]]:
    """Channels out and in of each convolution, by the key of its weight."""
    sizes = ((config.hidden_size, config.mel_bins), (config.hidden_size, config.hidden_size))
    return {f"{name}.weight": pair for name, pair in zip(CONVOLUTIONS, sizes, strict=True)}


def flattened(name: str, channels: tuple[int, int]) -> TensorPart:
    """A stored weight `[out, in, kernel]` as `[out, in * kernel]`."""
    return TensorPart(name, stored=(*channels, KERNEL), shown=(channels[0], channels[1] * KERNEL))


def hf_names(checkpoint: Checkpoint, config: WhisperConfig) -> dict[str, TensorPart]:
    """Key of the flows to tensor of a Hugging Face folder."""
    channels = convolution_channels(config)
    return {key: flattened(key, channels[key]) if key in channels else TensorPart(key) for key in keys_of(config)}
