"""Builds a `Tokenizer` from the `tokenizer.ggml.*` metadata of a GGUF file.

Two kinds of vocabulary: "gpt2" (byte-level BPE with merges) and "llama" (SentencePiece BPE with scores and byte
fallback). Source: docs/gguf.md of the ggml project and llama.cpp's llama-vocab.cpp for what each name means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlx.errors import TokenizerError
from rlx.io.checkpoint import Checkpoint
from rlx.io.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from rlx.io.string_array import StringArray
from rlx.io.tokenizer import END_OF_TURN, Tokenizer, TokenizerFacts

# tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_SPACE = "\u2581"


def build(file: Checkpoint) -> Tokenizer:
    """The tokenizer of a GGUF file; see `tokenizer.tokenizer_from_gguf`."""
    description = _Description(file)
    model = description.text("model")
    if model == "gpt2":
        return _byte_level(description)
    if model == "llama":
        return _sentencepiece(description)
    raise TokenizerError(
        "the file has no vocabulary that RLX can use",
        where=f"{file.path}, tokenizer.ggml.model",
        found=repr(model),
        expected="'gpt2' or 'llama'",
        fix="use the Hugging Face folder of the model, whose tokenizer.json says everything",
    )


class _Description:
    """The checked metadata under `tokenizer.ggml.`."""

    def __init__(self, file: Checkpoint) -> None:
        self.path, self.metadata = file.path, file.metadata
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, StringArray) or not tokens:
            raise self.error("tokens", "the file has no vocabulary")
        self.tokens: list[str] = tokens.decoded()
        self.longest_token = tokens.longest()  # in bytes
        types = self.numbers("token_type")
        self.types: NDArray[Any] = np.ones(len(self.tokens), np.int32) if types is None else types

    def error(self, key: str, what: str, found: object = None, expected: object = None) -> TokenizerError:
        return TokenizerError(what, where=f"{self.path}, tokenizer.ggml.{key}", found=found, expected=expected)

    def text(self, key: str) -> str:
        value = self.metadata.get(f"tokenizer.ggml.{key}", "")
        if not isinstance(value, str):
            raise self.error(key, "the value is not a string", found=type(value).__name__)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise self.error(key, "the value is not a truth value", found=repr(value))
        return value

    def token_id(self, key: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None or value == 0xFFFFFFFF:  # llama.cpp's "no such token"
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self.error(key, "a token id is outside the vocabulary", value, f"0 to {len(self.tokens) - 1}")
        return value

    def numbers(self, key: str) -> NDArray[Any] | None:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, np.ndarray):
            raise self.error(key, "the value is not an array of numbers", found=type(value).__name__)
        numbers = cast(NDArray[Any], value)
        if len(numbers) != len(self.tokens):
            raise self.error(
                key, "there is not one value per token", f"{len(numbers)} values", f"{len(self.tokens)} values"
            )
        return numbers

    def ids_of_type(self, *types: int) -> list[int]:
        return np.flatnonzero(np.isin(self.types, types)).tolist()


def _facts(description: _Description, **how: Any) -> TokenizerFacts:
    """What does not depend on the kind of vocabulary. `how`: style, leading_space, add_bos (the default)."""
    bos_id, eos_id = description.token_id("bos_token_id"), description.token_id("eos_token_id")
    special = frozenset(description.ids_of_type(_CONTROL, _UNKNOWN))
    ends = {eos_id, description.token_id("eot_token_id"), description.token_id("eom_token_id")}
    ends |= {token_id for token_id in special if description.tokens[token_id] in END_OF_TURN}
    add_bos = description.flag("add_bos_token", how.pop("add_bos"))
    add_eos = description.flag("add_eos_token", False)
    return TokenizerFacts(
        bos_id=bos_id,
        eos_ids=frozenset(token_id for token_id in ends if token_id is not None),
        special_ids=special,
        added_ids=special | frozenset(description.ids_of_type(_USER_DEFINED)),
        prefix_ids=(bos_id,) if add_bos and bos_id is not None else (),
        suffix_ids=(eos_id,) if add_eos and eos_id is not None else (),
        symbols=description.tokens,
        **how,
    )


def _byte_level(description: _Description) -> Tokenizer:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    rules = _pre_tokenizer(description)
    backend = _backend(description, _listed_merges(description), ignore_merges=rules.ignore_merges)
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, _facts(description, style="byte_level", add_bos=rules.add_bos))


def _pre_tokenizer(description: _Description) -> PreTokenizer:
    name = description.text("pre")
    rules = PRE_TOKENIZERS.get(name)
    if rules is None:
        raise description.error("pre", "RLX does not know how this vocabulary splits text", repr(name))
    return rules


def _listed_merges(description: _Description) -> list[tuple[str, str]]:
    merges = description.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, StringArray):
        raise description.error("merges", "a BPE vocabulary needs its merges", found="none")
    if merges.longest() - 1 > description.longest_token:
        # The library's own check of this is a panic, which prints.
        raise description.error("merges", "a merge gives something longer than every token")
    return merges.pairs()


def _sentencepiece(description: _Description) -> Tokenizer:
    from tokenizers import decoders, normalizers

    leading_space = description.flag("add_space_prefix", True)
    unknown = description.token_id("unknown_token_id")
    backend = _backend(
        description,
        _scored_merges(description),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else description.tokens[unknown],
    )
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if leading_space else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend, _facts(description, style="sentencepiece", add_bos=True, leading_space=leading_space))


def _scored_merges(description: _Description) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose union has the best score; the same as merges in the order of the scores."""
    scores = description.numbers("scores")
    if scores is None:
        raise description.error("scores", "a SentencePiece vocabulary needs its scores", found="none")
    whole = set(description.ids_of_type(_UNKNOWN, _CONTROL, _BYTE))
    pieces = {piece for index, piece in enumerate(description.tokens) if index not in whole}
    merges: list[tuple[str, str]] = []
    order: list[int] = np.argsort(-scores.astype(np.float64), kind="stable").tolist()
    for index in order:
        piece = description.tokens[index]
        if index in whole or len(piece) < 2:
            continue
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges.extend((left, right) for left, right in halves if left in pieces and right in pieces)
    return merges


def _backend(description: _Description, merges: Sequence[tuple[str, str]], **options: Any) -> Any:
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Backend

    tokens = description.tokens
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    try:
        backend: Any = Backend(models.BPE(vocabulary, merges, **options))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and a panic that is none
        raise description.error("merges", "the vocabulary and its merges do not fit together", str(error)) from None
    special = set(description.ids_of_type(_CONTROL, _UNKNOWN))
    added = [
        AddedToken(tokens[index], special=index in special, normalized=False)
        for index in description.ids_of_type(_CONTROL, _UNKNOWN, _USER_DEFINED)
        if tokens[index]
    ]
    backend.add_tokens(added)
    return backend
