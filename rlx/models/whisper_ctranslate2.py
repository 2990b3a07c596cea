"""Whisper in a CTranslate2 folder: sizes from the shapes of its tensors, and what it calls them.

In: an open folder of the specification WhisperSpec. Out: a `WhisperConfig`, and the tensor of each key. Source:
CTranslate2's specs/whisper_spec.py and converters. Next: `speech.py`.
"""

from __future__ import annotations

from rlx.core.dtype import bf16, f16, f32
from rlx.errors import UnsupportedModelError
from rlx.flow.tensor_part import TensorPart
from rlx.io.checkpoint import TensorInfo
from rlx.io.ctranslate2 import CTranslate2Folder
from rlx.models.whisper import (
    EMBEDDING,
    KERNEL,
    POSITIONS,
    WhisperConfig,
    convolution_channels,
    flattened,
    keys_of,
)

SPECIFICATION = "WhisperSpec"
ACTIVATIONS = {0: "relu", 1: "gelu_tanh", 2: "silu", 3: "gelu", 5: "tanh"}
"""Numbers of CTranslate2's activations, and the ops they are."""
TIED = "decoder/projection/weight"
# Numbers that say how a decoder is put together, with what Whisper's are.
EXPECTED = {
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
    "decoder/alibi": 0,
}


def whisper_from_ctranslate2(folder: CTranslate2Folder) -> WhisperConfig:
    """The sizes, which only the shapes of the tensors say.

    Raises:
        UnsupportedModelError: a tensor is missing, has another shape, or asks for another computation.
    """
    for name, expected in EXPECTED.items():
        found = folder.number(name)
        if found not in (None, expected):
            raise _refused(folder, name, found, expected)
    activation = folder.number("decoder/activation")
    if activation not in ACTIVATIONS:
        raise _refused(folder, "decoder/activation", activation, " or ".join(map(str, ACTIVATIONS)))
    first = _tensor(folder, "encoder/conv1/weight", 3).shape
    second = _tensor(folder, "encoder/conv2/weight", 3).shape
    if (first[2], second[2]) != (KERNEL, KERNEL):
        raise _refused(folder, "encoder/conv1/weight", list(first), f"[out, in, {KERNEL}]")
    source, target = (
        _tensor(folder, f"{side}/position_encodings/encodings", 2).shape[0] for side in ("encoder", "decoder")
    )
    layers = [_layers(folder, side) for side in ("encoder", "decoder")]
    heads = [_heads(folder, side, first[0]) for side in ("encoder", "decoder")]
    inner = [_tensor(folder, f"{side}/layer_0/ffn/linear_0/weight", 2).shape[0] for side in ("encoder", "decoder")]
    embedding, projection = _tensor(folder, "decoder/embeddings/weight", 2), folder.tensors.get(TIED)
    return WhisperConfig(
        vocab_size=embedding.shape[0],
        mel_bins=first[1],
        hidden_size=first[0],
        encoder_layers=layers[0],
        encoder_heads=heads[0],
        encoder_intermediate=inner[0],
        decoder_layers=layers[1],
        decoder_heads=heads[1],
        decoder_intermediate=inner[1],
        source_positions=source,
        target_positions=target,
        activation=ACTIVATIONS[activation],
        tied=projection is None or projection.offset == embedding.offset,
    )


def ctranslate2_names(config: WhisperConfig) -> dict[str, TensorPart]:
    """Key of the flows to tensor; q, k and v of a self-attention are rows of one, k and v of a cross attention too."""
    channels = convolution_channels(config)
    names = {key: _part(key, config.hidden_size) for key in keys_of(config)}
    return names | {key: flattened(names[key].name, pair) for key, pair in channels.items()}


def _part(key: str, hidden: int) -> TensorPart:
    if key == EMBEDDING:
        return TensorPart("decoder/embeddings/weight")
    if key == "proj_out.weight":
        return TensorPart(TIED)
    _, side, *middle, kind = key.split(".")
    if key.endswith(POSITIONS):
        return TensorPart(f"{side}/position_encodings/encodings")
    if middle[0] != "layers":
        if middle[0] == "layer_norm":
            return TensorPart(f"{side}/layer_norm/{_norm(kind)}")
        return TensorPart(f"{side}/{middle[0]}/{kind}")
    layer, name = f"{side}/layer_{middle[1]}", middle[2]
    if name.endswith("_layer_norm"):
        block = {"self_attn": "self_attention", "encoder_attn": "attention", "final": "ffn"}[
            name.removesuffix("_layer_norm")
        ]
        return TensorPart(f"{layer}/{block}/layer_norm/{_norm(kind)}")
    if name in ("fc1", "fc2"):
        return TensorPart(f"{layer}/ffn/linear_{0 if name == 'fc1' else 1}/{kind}")
    return _attention_part(layer, name, middle[3].removesuffix("_proj"), kind, hidden)


def _attention_part(layer: str, name: str, part: str, kind: str, hidden: int) -> TensorPart:
    if name == "self_attn":
        if part == "out":
            return TensorPart(f"{layer}/self_attention/linear_1/{kind}")
        start = "qkv".index(part) * hidden
        return TensorPart(f"{layer}/self_attention/linear_0/{kind}", ((start, start + hidden),))
    if part in ("k", "v"):
        start = "kv".index(part) * hidden
        return TensorPart(f"{layer}/attention/linear_1/{kind}", ((start, start + hidden),))
    return TensorPart(f"{layer}/attention/linear_{0 if part == 'q' else 2}/{kind}")


def _norm(kind: str) -> str:
    return {"weight": "gamma", "bias": "beta"}[kind]


def _layers(folder: CTranslate2Folder, side: str) -> int:
    """How many layers there are; the names of their tensors count them."""
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in folder.tensors:
        count += 1
    return count


def _heads(folder: CTranslate2Folder, side: str, hidden: int) -> int:
    heads = folder.number(f"{side}/num_heads")
    if heads is None or heads < 1 or hidden % heads:
        raise _refused(folder, f"{side}/num_heads", heads, f"a divisor of {hidden}")
    return heads


def _tensor(folder: CTranslate2Folder, name: str, rank: int) -> TensorInfo:
    info = folder.tensors.get(name)
    if info is None or len(info.shape) != rank:
        raise _refused(folder, name, "nothing" if info is None else list(info.shape), f"a tensor with {rank} axes")
    if info.dtype not in (f32, f16, bf16):
        raise UnsupportedModelError(
            "RLX reads the float files of CTranslate2",
            where=str(folder.path),
            found=f"{name} is {info.dtype}",
            expected="f32, f16 or bf16",
            fix="convert the model with --quantization float16; RLX rounds it to 8 bits itself",
        )
    return info


def _refused(folder: CTranslate2Folder, name: str, found: object, expected: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name!r} is not what a Whisper has", where=str(folder.path), found=found, expected=expected
    )
