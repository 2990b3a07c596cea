"""A tokenizer in the other format: tokenizer.json as `tokenizer.ggml.*` metadata, and back.

In goes a Hugging Face folder, out come the metadata that `tokenizer_gguf.py` reads; or an open GGUF file, out come the
files that `tokenizer_folder.py` reads. GGUF names the way a vocabulary splits text instead of spelling it, so a
tokenizer.json whose expressions have no name there is refused. Used by `rlx/models/convert.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlx.errors import TokenizerError
from rlx.io.chat_template import find_template
from rlx.io.checkpoint import Checkpoint
from rlx.io.json_file import read_object, read_object_if_present
from rlx.io.pretokenizers import PRE_TOKENIZERS
from rlx.io.tokenizer import Tokenizer, tokenizer_from

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def gguf_tokenizer(checkpoint: Checkpoint, vocab_size: int) -> dict[str, object]:
    """The metadata of a folder's tokenizer and chat template, for a model of `vocab_size` tokens.

    Raises:
        TokenizerError: GGUF has no name for what the tokenizer does.
    """
    folder = checkpoint.path
    tokenizer = tokenizer_from(checkpoint)
    description = read_object(folder / "tokenizer.json")
    model = cast("dict[str, Any]", description.get("model") or {})
    if model.get("type") != "BPE":
        raise _refused(folder, "the model of tokenizer.json", model.get("type"), "BPE")
    is_bytes = tokenizer.facts.style == "byte_level"
    tokens, types = _vocabulary(tokenizer, model, vocab_size, is_bytes)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    metadata: dict[str, object] = {"tokenizer.ggml.model": "gpt2" if is_bytes else "llama"}
    if is_bytes:
        metadata["tokenizer.ggml.pre"] = _splitting_name(folder, description, model)
    else:
        metadata["tokenizer.ggml.scores"] = _scores(tokens, merges)
        metadata["tokenizer.ggml.add_space_prefix"] = tokenizer.facts.leading_space
    metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"] = tokens, np.array(types, np.int32)
    if is_bytes:
        metadata["tokenizer.ggml.merges"] = merges
    return metadata | _special(checkpoint, tokenizer, model, tokens)


def _refused(folder: Path, what: str, found: object, expected: object) -> TokenizerError:
    return TokenizerError(
        f"{what} has no counterpart in GGUF that RLX knows",
        where=str(folder),
        found=repr(found)[:200],
        expected=expected,
    )


def _vocabulary(
    tokenizer: Tokenizer, model: dict[str, Any], vocab_size: int, is_bytes: bool
) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    for text, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if index < vocab_size:
            is_byte = not is_bytes and re.fullmatch("<0x[0-9A-F]{2}>", text) is not None
            tokens[index], types[index] = text, _BYTE if is_byte else _NORMAL
    for index in tokenizer.facts.added_ids:
        if index < vocab_size:
            types[index] = _CONTROL if index in tokenizer.facts.special_ids else _USER_DEFINED
    unknown = tokenizer.backend.token_to_id(model["unk_token"]) if model.get("unk_token") else None
    if unknown is not None and not is_bytes:
        types[unknown] = _UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> np.ndarray:
    """SentencePiece merges by score, tokenizer.json by rank: the earlier, the higher."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", "", 1), rank)
    return np.array([-float(ranks.get(token, 0)) for token in tokens], np.float32)


def _splitting_name(folder: Path, description: dict[str, Any], model: dict[str, Any]) -> str:
    patterns = tuple(_patterns(folder, cast("dict[str, Any]", description.get("pre_tokenizer") or {})))
    normalizer = cast("dict[str, Any]", description.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _refused(folder, "the normalizer of tokenizer.json", normalizer, "none, or NFC")
    wanted = (patterns, bool(model.get("ignore_merges")), normalizer == "NFC")
    for name, rules in PRE_TOKENIZERS.items():
        if name and (rules.patterns, rules.ignore_merges, rules.nfc) == wanted:
            return name
    # a vocabulary in which every token can be reached by merges is split alike with and without ignore_merges
    for name, rules in PRE_TOKENIZERS.items():
        if name and (rules.patterns, rules.nfc) == (wanted[0], wanted[2]):
            return name
    raise _refused(folder, "the pre-tokenizer of tokenizer.json", list(patterns), "one that llama.cpp has a name for")


def _patterns(folder: Path, part: dict[str, Any]) -> list[str]:
    """The expressions of a pre-tokenizer, in order."""
    kind = part.get("type")
    if kind == "Sequence":
        return [pattern for inner in part.get("pretokenizers", []) for pattern in _patterns(folder, inner)]
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return [_GPT2] if part.get("use_regex", True) else []
    if kind == "Digits" and part.get("individual_digits"):
        return [r"\p{N}"]
    pattern = cast("dict[str, Any]", part.get("pattern") or {}).get("Regex")
    if kind == "Split" and isinstance(pattern, str) and part.get("behavior") == "Isolated" and not part.get("invert"):
        return [pattern]
    raise _refused(folder, "a part of the pre-tokenizer", part, "Split, Digits or ByteLevel")


def _special(
    checkpoint: Checkpoint, tokenizer: Tokenizer, model: dict[str, Any], tokens: list[str]
) -> dict[str, object]:
    settings = read_object_if_present(checkpoint.path / "tokenizer_config.json")
    result: dict[str, object] = {}
    named = {"bos": settings.get("bos_token"), "eos": settings.get("eos_token"), "padding": settings.get("pad_token")}
    named["unknown"] = model.get("unk_token") or settings.get("unk_token")
    for role, token in named.items():
        text = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
        index = tokenizer.backend.token_to_id(text) if isinstance(text, str) else None
        if index is not None and index < len(tokens):
            result[f"tokenizer.ggml.{role}_token_id"] = index
    if "tokenizer.ggml.bos_token_id" not in result and tokenizer.facts.bos_id is not None:
        result["tokenizer.ggml.bos_token_id"] = tokenizer.facts.bos_id
    if "tokenizer.ggml.eos_token_id" not in result and tokenizer.facts.eos_ids:
        result["tokenizer.ggml.eos_token_id"] = min(tokenizer.facts.eos_ids)
    plain, full = tokenizer.encode("a", add_special=False), tokenizer.encode("a")
    result["tokenizer.ggml.add_bos_token"] = full[: len(full) - len(plain)] != [] and full[-len(plain) :] == plain
    result["tokenizer.ggml.add_eos_token"] = len(full) > len(plain) and full[: len(plain)] == plain
    template = find_template(checkpoint)
    if template is not None:
        result["tokenizer.chat_template"] = template.parsed().source
    return result


def write_tokenizer_folder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of an open GGUF file.

    Raises:
        TokenizerError: the file describes no tokenizer that RLX knows.
    """
    tokenizer = tokenizer_from(checkpoint)
    facts = tokenizer.facts
    from tokenizers import Tokenizer as Backend

    backend: Any = Backend.from_str(tokenizer.backend.to_str())
    if facts.prefix_ids or facts.suffix_ids:
        from tokenizers import processors

        before = [facts.symbols[index] for index in facts.prefix_ids]
        after = [facts.symbols[index] for index in facts.suffix_ids]
        special = [(facts.symbols[index], index) for index in {*facts.prefix_ids, *facts.suffix_ids}]
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join([*before, "$A", *after]), special_tokens=special
        )
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role in ("bos", "eos", "padding", "unknown"):
        index = checkpoint.metadata.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(index, int) and 0 <= index < len(facts.symbols):
            name = {"padding": "pad", "unknown": "unk"}.get(role, role)
            settings[f"{name}_token"] = facts.symbols[index]
    template = checkpoint.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
