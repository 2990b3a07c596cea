"""What the families of image models share: which fields carry no computation, how keys find tensors, labels, recipes.

In: an open checkpoint and what a family read from its configuration. Out: an `ImageRecipe`. Every field of a
config.json is read, known to carry no computation, or refused by name and value; every tensor is read, or known to
be read by nothing. Next: `vit.py`, `dinov2.py`, `clip.py`, `siglip.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from rlx.core.storage import decode
from rlx.errors import TensorShapeError
from rlx.flow.stage import BlockStage
from rlx.flow.tensor_part import TensorPart
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint, usable_tensor
from rlx.io.sentence_transformers import SentenceSettings
from rlx.models.encoder_family import ACTIVATIONS, NEUTRAL
from rlx.models.encoder_family import NO_COMPUTATION as ENCODER_NO_COMPUTATION
from rlx.models.fields import Fields
from rlx.models.recipe import EncoderRecipe, ImageRecipe
from rlx.models.tower import (
    GRID_POSITIONS,
    ImageSide,
    Shapes,
    TextSide,
    TowerConfig,
    image_flow,
    norm_shapes,
    text_flow,
    tower_shapes,
)

IMAGE_ACTIVATIONS = {**ACTIVATIONS, "quick_gelu": "gelu_quick"}

# What a checkpoint was trained with, which layers it shows to others, and how texts were once generated with it.
NO_COMPUTATION = ENCODER_NO_COMPUTATION | frozenset(
    (
        "apply_layernorm", "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty",
        "do_sample", "drop_path_rate", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_stride",
        "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "initializer_factor",
        "layerscale_value", "length_penalty", "logit_scale_init_value", "max_length", "min_length",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "out_features", "out_indices",
        "output_scores", "prefix", "remove_invalid_values", "repetition_penalty", "reshape_hidden_states",
        "return_dict_in_generate", "stage_names", "suppress_tokens", "temperature", "tf_legacy_loss",
        "tie_encoder_decoder", "top_k", "top_p", "typical_p", "use_mask_token",
    )
)  # fmt: skip


def refuse_unread(fields: Fields) -> None:
    """Refuse a field that nobody asked for.

    Raises:
        UnsupportedModelError: naming the field and its value.
    """
    fields.refuse_unread(lambda name: name in NO_COMPUTATION, NEUTRAL)


def class_of(fields: Fields, allowed: Collection[str], default: str) -> str:
    """The class of transformers that wrote a config.json.

    Raises:
        UnsupportedModelError: it is none of those allowed.
    """
    classes = fields.get("architectures")
    name = cast("list[object]", classes)[0] if isinstance(classes, list) and classes else default
    if name not in allowed:
        fields.refuse("architectures", " or ".join(allowed))
    return str(name)


def square(fields: Fields, name: str, default: int) -> int:
    """Height and width of a square, which may be listed.

    Raises:
        UnsupportedModelError: they differ.
    """
    value = fields.get(name)
    sides = cast("list[object]", value) if isinstance(value, list) else [default if value is None else value]
    if len(sides) > 2 or any(type(side) is not int or side < 1 or side != sides[0] for side in sides):
        fields.refuse(name, "a positive whole number, or a list of two equal ones")
    return cast(int, sides[0])


def image_side(fields: Fields, kind: ImageSide) -> ImageSide:
    """The fields by which an image becomes rows; `kind` has what no field says, and the sizes that are meant otherwise.

    Raises:
        UnsupportedModelError: a field is malformed, or an image has no patch.
    """
    side = replace(
        kind,
        image_size=square(fields, "image_size", kind.image_size),
        patch_size=square(fields, "patch_size", kind.patch_size),
        channels=fields.integer("num_channels", 3),
    )
    if side.grid < 1:
        fields.refuse("patch_size", f"at most the image_size {side.image_size}")
    return side


def check_heads(fields: Fields, config: TowerConfig) -> TowerConfig:
    """The configuration, if its heads divide its width.

    Raises:
        UnsupportedModelError: they do not.
    """
    if config.hidden_size % config.num_heads:
        fields.refuse("num_attention_heads", f"a divisor of {config.hidden_size}")
    return config


def tower_names(config: TowerConfig, layer_prefix: str, layer: Mapping[str, str], norm: str) -> dict[str, TensorPart]:
    """Key of every weight of the layers, and of the norm behind them, to its tensor.

    Args:
        config: the tower.
        layer_prefix: stands before the name of a layer's weight; `{i}` is the layer's number.
        layer: a layer's part (`q`, `norm1`, ...) to its name in the file, both without `.weight` and `.bias`.
        norm: name of the last norm, without `.weight`.
    """
    names: dict[str, TensorPart] = {}
    for key, shape in tower_shapes(config).items():
        if key.startswith("layers."):
            _, index, part = key.split(".", 2)
            part, dot, kind = part.partition(".")
            name = f"{layer_prefix.format(i=index)}{layer[part]}{dot}{kind}"
        else:
            name = f"{norm}.{key.rpartition('.')[2]}"
        names[key] = TensorPart(name, stored=shape)
    return names


def image_names(
    config: TowerConfig, side: ImageSide, patch: str, cls: tuple[str, tuple[int, ...]], positions: tuple[str, int]
) -> dict[str, TensorPart]:
    """Key of every weight that makes rows of an image to its tensor.

    Args:
        config, side: the tower.
        patch: name of the embedding of patches, without `.weight`.
        cls: name and stored shape of the CLS token.
        positions: name of the table of positions, and how many axes it has in the file.
    """
    hidden, size = config.hidden_size, side.patch_size
    pixels, first = side.channels * size * size, int(side.has_cls)
    names = {
        "patch.weight": TensorPart(
            f"{patch}.weight", stored=(hidden, side.channels, size, size), shown=(hidden, pixels)
        )
    }
    if side.patch_bias:
        names["patch.bias"] = TensorPart(f"{patch}.bias", stored=(hidden,))
    table = (first + side.grid**2, hidden)
    stored = (1,) * (positions[1] - 2) + table

    def rows(start: int, stop: int) -> TensorPart:
        return TensorPart(positions[0], ((start, stop),), stored=stored, shown=table)

    names[GRID_POSITIONS] = rows(first, table[0])
    if side.has_cls:
        names["cls"] = TensorPart(cls[0], stored=cls[1], shown=(1, hidden))
        names["cls_position"] = rows(0, 1)
    return names


def named(shapes: Shapes, names: Mapping[str, str]) -> dict[str, TensorPart]:
    """Each key of `shapes` to its tensor: `names` has it, or the key without its last part (`head.dense`)."""
    parts: dict[str, TensorPart] = {}
    for key, shape in shapes.items():
        stem, _, kind = key.rpartition(".")
        parts[key] = TensorPart(names[key] if key in names else f"{names[stem]}.{kind}", stored=shape)
    return parts


def prefixed(names: Mapping[str, TensorPart], prefix: str) -> dict[str, TensorPart]:
    """The same map for a file in which every name begins with `prefix`."""
    return {key: replace(part, name=prefix + part.name) for key, part in names.items()}


def image_recipe(
    architecture: str,
    checkpoint: Checkpoint,
    config: TowerConfig,
    side: ImageSide,
    names: Mapping[str, TensorPart],
    head: BlockStage,
    width: int,
    labels: tuple[str, ...] = (),
) -> ImageRecipe:
    """The recipe of an image's tower.

    Raises:
        MissingTensorError, TensorShapeError: the learned positions, which no stage of the flow reads.
    """
    weights = MappedWeights(checkpoint, names)
    weights.type_of(GRID_POSITIONS)
    return ImageRecipe(
        architecture=architecture,
        flow=image_flow(config, side, head, architecture),
        weights=weights,
        side=side,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        width=width,
        labels=labels,
    )


def text_recipe(
    architecture: str,
    checkpoint: Checkpoint,
    config: TowerConfig,
    side: TextSide,
    names: Mapping[str, TensorPart],
    head: BlockStage,
    width: int,
    end_token: int | None = None,
    pad_token: int | None = None,
) -> EncoderRecipe:
    """The recipe of a text's tower; see `EncoderRecipe` for `end_token` and `pad_token`."""
    return EncoderRecipe(
        architecture=architecture,
        flow=text_flow(config, side, head, architecture),
        weights=MappedWeights(checkpoint, names),
        vocab_size=side.vocab_size,
        width=width,
        num_layers=config.num_layers,
        token_types=0,
        labels=0,
        score_function="identity",
        settings=SentenceSettings(max_tokens=side.max_tokens),
        end_token=end_token,
        pad_token=pad_token,
    )


def text_names(config: TowerConfig, side: TextSide, prefix: str = "") -> dict[str, TensorPart]:
    """Key of the tables of tokens and positions to their tensors, by the names CLIP and SigLIP have for them."""
    hidden = config.hidden_size
    shapes: Shapes = {"tokens.weight": (side.vocab_size, hidden), "positions.weight": (side.max_tokens, hidden)}
    tables = {"tokens": "embeddings.token_embedding", "positions": "embeddings.position_embedding"}
    return prefixed(named(shapes, tables), prefix)


def labels_of(fields: Fields, checkpoint: Checkpoint, classifier: str) -> tuple[str, ...]:
    """The labels of a classifier, as many as its weight has rows; `id2label` names them.

    Raises:
        UnsupportedModelError: `id2label` has other numbers.
    """
    table = checkpoint.tensors.get(classifier)
    named_labels = fields.table("id2label")
    count = table.shape[0] if table is not None and table.shape else len(named_labels)
    if not named_labels:
        return tuple(f"LABEL_{index}" for index in range(count))
    if sorted(named_labels) != sorted(map(str, range(count))):
        fields.refuse("id2label", f"a name for each of 0 to {count - 1}")
    return tuple(str(named_labels[str(index)]) for index in range(count))


def scalar(checkpoint: Checkpoint, name: str) -> float:
    """A tensor of one number.

    Raises:
        MissingTensorError: there is none of that name.
        TensorShapeError: it holds more.
    """
    info = usable_tensor(checkpoint.tensors, name, checkpoint.path)
    if info.shape not in ((), (1,)):
        raise TensorShapeError(
            f"the tensor {name} is one number", where=str(checkpoint.path), found=list(info.shape), expected="[1]"
        )
    return float(np.asarray(decode(info.dtype, checkpoint.data(name), (1,)))[0])


def norm_names(key: str, name: str, width: int) -> dict[str, TensorPart]:
    """Weight and bias of a layer norm."""
    return named(norm_shapes(key, width), {key: name})
