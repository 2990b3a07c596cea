"""The files by which sentence-transformers says how a folder's model embeds: pooling, length, prompts.

In: a folder. Out: `SentenceSettings`, or None for a folder without modules.json. Sources: the files that
sentence-transformers writes (`SentenceTransformer.save`); what is not understood is refused by name, since another
pooling or one module more gives other vectors. Next: `rlx/models/bert.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from rlx.errors import FileFormatError, UnsupportedModelError
from rlx.io.json_file import read_object, read_object_if_present

POOLING_MODES = {
    "cls_token": "first",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "lasttoken": "last",
    "weightedmean_tokens": None,
}
"""Flags `pooling_mode_*` of a pooling's config.json; None for a mode RLX does not have."""
SHORT_MODES = {"cls": "first", "mean": "mean", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt", "lasttoken": "last"}
"""Values of `pooling_mode`, the newer way to say it."""


@dataclass(frozen=True, slots=True)
class SentenceSettings:
    """How a folder's model embeds.

    Attributes:
        pooling: one of `rlx.ops.pooling.POOLINGS`.
        normalize: vectors are made of length 1.
        max_tokens: most tokens of a text, special ones included; what is longer is cut. None for the model's own limit.
        prompts: texts that are put before the text, by name.
        default_prompt: the name of the one that is used where none is asked for.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str | None = None


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
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise UnsupportedModelError(
            "the modules of this sentence-transformers model are not the ones RLX has",
            where=str(path),
            found=", ".join(kinds) or "none",
            expected="Transformer, Pooling, and perhaps Normalize",
        )
    transformer = read_object_if_present(folder / modules[0][1] / "sentence_bert_config.json")
    if transformer.get("do_lower_case") not in (None, False):
        _refuse(folder / modules[0][1] / "sentence_bert_config.json", "do_lower_case", True, "false")
    general = read_object_if_present(folder / "config_sentence_transformers.json")
    prompts = _prompts(general, folder / "config_sentence_transformers.json")
    default = general.get("default_prompt_name")
    if default is not None and default not in prompts:
        _refuse(folder / "config_sentence_transformers.json", "default_prompt_name", default, "the name of a prompt")
    return SentenceSettings(
        pooling=_pooling(folder / modules[1][1] / "config.json", bool(prompts)),
        normalize=len(kinds) == 3,
        max_tokens=_max_tokens(transformer, folder),
        prompts=prompts,
        default_prompt=default,
    )


def _modules(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of every module, in order."""
    try:
        entries: object = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FileFormatError("modules.json cannot be read", where=str(path), found=str(error)[:200]) from None
    modules: list[tuple[str, str]] = []
    for entry in cast("list[object]", entries if isinstance(entries, list) else [None]):
        fields = cast("dict[str, object]", entry if isinstance(entry, dict) else {})
        kind, place = fields.get("type"), fields.get("path")
        # a module lies inside of the folder
        if not isinstance(kind, str) or not isinstance(place, str) or place.startswith("/") or _climbs(place):
            raise FileFormatError("modules.json does not list modules", where=str(path), found=str(fields)[:80])
        modules.append((kind.rsplit(".", 1)[-1], place))
    return modules


def _climbs(place: str) -> bool:
    return ".." in PurePosixPath(place).parts or "\\" in place or ":" in place or "\0" in place


def _pooling(path: Path, has_prompts: bool) -> str:
    config = read_object(path)
    if config.get("include_prompt", True) is not True and has_prompts:
        _refuse(path, "include_prompt", config.get("include_prompt"), "true")
    short = config.get("pooling_mode")
    if short is not None:
        mode = SHORT_MODES.get(short) if isinstance(short, str) else None
        return mode or _refuse(path, "pooling_mode", short, ", ".join(SHORT_MODES))
    chosen = [key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on]
    mode = POOLING_MODES.get(chosen[0]) if len(chosen) == 1 else None
    return mode or _refuse(path, "pooling_mode_*", ", ".join(chosen), "one of " + ", ".join(POOLING_MODES))


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
    return texts if len(texts) == len(prompts) else _refuse(path, "prompts", prompts, "texts by name")


def _refuse(path: Path, name: str, value: object, expected: str) -> Any:
    raise UnsupportedModelError(
        f"RLX cannot use the value of {name}", where=str(path), found=f"{name} = {value!r}"[:120], expected=expected
    )
