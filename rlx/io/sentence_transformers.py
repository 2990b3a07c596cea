"""The files by which sentence-transformers says how a folder's model embeds: pooling, what follows it, length, prompts.

In: a folder. Out: `SentenceSettings`, or None for a folder without modules.json. Sources: the files that
sentence-transformers writes (`SentenceTransformer.save`, `CrossEncoder.save`), by the names of version 2 to 6; what is
not understood is refused by name, since another pooling or one module more gives other vectors. Next:
`rlx/models/encoder_family.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, cast

from rlx.errors import FileFormatError, UnsupportedModelError
from rlx.io.json_file import read_object, read_object_if_present

POOLING_FLAGS = {
    "cls_token": "first",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last",
}
"""Flags `pooling_mode_*` of a pooling's config.json, in the order in which the vectors of several lie side by side."""
POOLING_MODES = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""Values of `pooling_mode`, the newer way to say it."""
DENSE_FUNCTIONS = {
    "linear.Identity": None,
    "activation.Tanh": "tanh",
    "activation.ReLU": "relu",
    "activation.GELU": "gelu",
    "activation.SiLU": "silu",
    "activation.Sigmoid": "sigmoid",
}
"""`activation_function` of a dense layer behind `torch.nn.modules.`, and the op it is."""

# Of sentence_bert_config.json: fields with the values that change nothing for texts.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "do_lower_case": (None, False),
    "module_output_name": (None, "token_embeddings", "scores"),
    "query_expansion": (None,),
    "query_length": (None,),
    "document_length": (None,),
    "processing_kwargs": (None, {}),
    "tokenizer_args": (None, {}),
    "processor_kwargs": (None, {}),
    "config_args": (None, {}),
    "config_kwargs": (None, {}),
    "tokenizer_name_or_path": (None,),
}
_READ = ("max_seq_length", "transformer_task", "modality_config", "model_args", "model_kwargs", "unpad_inputs")


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A layer behind the pooling: `activation(linear(x))`.

    Attributes:
        folder: holds its weights, `linear.weight [out, in]` and perhaps `linear.bias`, in model.safetensors.
        in_features, out_features: the sizes.
        bias: there is a bias.
        activation: an op of `rlx/ops/elementwise.py`, or None.
    """

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str | None


@dataclass(frozen=True, slots=True)
class NormalizeModule:
    """The vector is made of length 1."""


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """How a folder's model embeds, or scores.

    Attributes:
        pooling: of `rlx.ops.pooling.POOLINGS`; the vectors of several lie side by side. Empty for a model that scores.
        steps: what is done to the vector then, in order.
        max_tokens: most tokens of a text, special ones included; what is longer is cut. None for the model's own limit.
        prompts: texts that are put before the text, by name.
        default_prompt: the name of the one that is used where none is asked for.
        score_function: the name of what is applied to scores; None for what config.json says.
    """

    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[DenseModule | NormalizeModule, ...] = ()
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str | None = None
    score_function: str | None = None


def read_sentence_settings(folder: Path) -> SentenceSettings | None:
    """The settings of a folder; None if it has no modules.json.

    Raises:
        FileFormatError: a file is malformed.
        UnsupportedModelError: a module or a pooling that RLX does not have.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    modules = _modules(path)
    kinds = [kind for kind, _ in modules]
    scores = kinds == ["Transformer"]
    if not scores and kinds[:2] != ["Transformer", "Pooling"]:
        raise UnsupportedModelError(
            "the modules of this sentence-transformers model are not in an order that RLX knows",
            where=str(path),
            found=", ".join(kinds) or "none",
            expected="Transformer and Pooling, perhaps followed by Dense and Normalize; Transformer alone to score",
        )
    transformer = _transformer(folder / modules[0][1] / "sentence_bert_config.json", scores)
    place = folder / "config_sentence_transformers.json"
    general = read_object_if_present(place)
    prompts = _prompts(general, place)
    default = general.get("default_prompt_name")
    if default is not None and default not in prompts:
        _refuse(place, "default_prompt_name", default, "the name of a prompt")
    function = general.get("activation_fn")
    return SentenceSettings(
        pooling=() if scores else _pooling(folder / modules[1][1] / "config.json", any(prompts.values())),
        steps=tuple(_step(kind, folder / place) for kind, place in modules[2:]),
        max_tokens=_max_tokens(transformer, folder),
        prompts=prompts,
        default_prompt=default,
        score_function=None if function is None else str(function),
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of every module, in order."""
    try:
        entries: object = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError("modules.json cannot be read", where=str(path), found=str(error)[:200]) from None
    modules: list[tuple[str, str]] = []
    for entry in cast("list[object]", entries if isinstance(entries, list) else [None]):
        fields = cast("dict[str, object]", entry if isinstance(entry, dict) else {})
        kind, place = fields.get("type"), fields.get("path")
        # a module lies inside of the folder
        if not isinstance(kind, str) or not isinstance(place, str) or place.startswith("/") or _climbs(place):
            raise FileFormatError("modules.json does not list modules", where=str(path), found=str(fields)[:80])
        package, _, name = kind.rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or name not in MODULES:
            _refuse(path, "a module's type", kind, f"one of sentence_transformers' {', '.join(MODULES)}")
        if fields.get("kwargs"):
            _refuse(path, "a module's kwargs", fields["kwargs"], "none")
        modules.append((name, place))
    return modules


MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def _climbs(place: str) -> bool:
    return ".." in PurePosixPath(place).parts or "\\" in place or ":" in place or "\0" in place


def _transformer(path: Path, scores: bool) -> Mapping[str, Any]:
    """The configuration of the model itself; its fields are known, or change nothing, or are refused."""
    config = read_object_if_present(path)
    for name, value in config.items():
        if name not in _READ and not any(value == neutral for neutral in _NEUTRAL.get(name, ())):
            expected = " or ".join(repr(neutral) for neutral in _NEUTRAL.get(name, ()) if neutral is not None)
            _refuse(path, name, value, expected or "only fields that RLX knows the meaning of")
    task = "sequence-classification" if scores else "feature-extraction"
    if config.get("transformer_task", task) != task:
        _refuse(path, "transformer_task", config["transformer_task"], task)
    modalities = config.get("modality_config")
    if modalities is not None and (not isinstance(modalities, dict) or "text" not in modalities):
        _refuse(path, "modality_config", cast(object, modalities), "a way to take text")
    return config


def _pooling(path: Path, has_prompts: bool) -> tuple[str, ...]:
    config = read_object(path)
    if config.get("include_prompt", True) is not True and has_prompts:
        _refuse(path, "include_prompt", config.get("include_prompt"), "true")
    named: object = config.get("pooling_mode")
    if named is None:
        flags = (name for name in config if name.startswith("pooling_mode_") and config[name])
        asked = [flag.removeprefix("pooling_mode_") for flag in flags]
        if any(flag not in POOLING_FLAGS for flag in asked):
            _refuse(path, "pooling_mode_*", ", ".join(asked), "of " + ", ".join(POOLING_FLAGS))
        return tuple(mode for flag, mode in POOLING_FLAGS.items() if flag in asked) or ("mean",)
    modes = cast("list[object]", named if isinstance(named, list) else [named])
    found = tuple(POOLING_MODES[mode] for mode in modes if isinstance(mode, str) and mode in POOLING_MODES)
    if not found or len(found) != len(modes):
        _refuse(path, "pooling_mode", modes, ", ".join(POOLING_MODES))
    return found


def _step(kind: str, folder: Path) -> DenseModule | NormalizeModule:
    """A module behind the pooling."""
    path = folder / "config.json"
    config = read_object_if_present(path)
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            _refuse(path, name, config[name], "sentence_embedding")
    if kind == "Normalize":
        return NormalizeModule()
    if kind != "Dense":
        _refuse(folder, "a module's type", kind, "Dense or Normalize behind the pooling")
    if config.get("use_residual"):
        _refuse(path, "use_residual", True, "false")
    sizes = [config.get(name) for name in ("in_features", "out_features")]
    if not all(type(size) is int and size > 0 for size in sizes):
        _refuse(path, "in_features, out_features", sizes, "two positive whole numbers")
    bias = config.get("bias", True)
    if not isinstance(bias, bool):
        _refuse(path, "bias", bias, "true or false")
    function = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    name = str(function).removeprefix("torch.nn.modules.")
    if name not in DENSE_FUNCTIONS:
        _refuse(
            path, "activation_function", function, ", ".join(f"torch.nn.modules.{known}" for known in DENSE_FUNCTIONS)
        )
    return DenseModule(folder, cast(int, sizes[0]), cast(int, sizes[1]), bias, DENSE_FUNCTIONS[name])


def _max_tokens(transformer: Mapping[str, Any], folder: Path) -> int | None:
    """`max_seq_length`, or what the tokenizer was made for."""
    value = transformer.get("max_seq_length")
    if value is None:
        limit = read_object_if_present(folder / "tokenizer_config.json").get("model_max_length")
        # transformers writes 10^30 for no limit
        return limit if isinstance(limit, int) and 1 <= limit < 1 << 31 else None
    if type(value) is not int or value < 1:
        _refuse(folder / "sentence_bert_config.json", "max_seq_length", value, "a positive whole number")
    return value


def _prompts(general: Mapping[str, Any], path: Path) -> dict[str, str]:
    value: object = general.get("prompts") or {}
    prompts = cast("dict[str, object]", value if isinstance(value, dict) else {"": None})
    texts = {name: text for name, text in prompts.items() if isinstance(text, str)}
    if len(texts) != len(prompts):
        _refuse(path, "prompts", prompts, "texts by name")
    return texts


def _refuse(path: Path, name: str, value: object, expected: str) -> NoReturn:
    raise UnsupportedModelError(
        f"RLX cannot use the value of {name}", where=str(path), found=f"{name} = {value!r}"[:120], expected=expected
    )
