"""Builds a `Tokenizer` from the `tokenizer.ggml.*` metadata of a GGUF file.

The vocabularies of language models: "gpt2" (byte-level BPE with merges) and "llama" (SentencePiece BPE with scores and
byte fallback); those of encoders are in `tokenizer_encoder.py`. Source: docs/gguf.md of the ggml project and
llama.cpp's llama-vocab.cpp for what each name means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.errors import TokenizerError
from rlx.io.checkpoint import Checkpoint
from rlx.io.gguf import GGUFFile, open_gguf
from rlx.io.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from rlx.io.string_array import StringArray
from rlx.io.tokenizer import END_OF_TURN, Tokenizer, TokenizerFacts
from rlx.io.tokenizer_description import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Description
from rlx.io.tokenizer_index import Arrays, SmallVocabularies, VocabularyIndex, index_arrays

_SPACE = "\u2581"


def build(file: Checkpoint) -> Tokenizer:
    """The tokenizer of a GGUF file; see `tokenizer.tokenizer_from_gguf`."""
    description = Description(file)
    model = description.text("model")
    if model == "gpt2":
        return _byte_level(description)
    if model == "llama":
        return _sentencepiece(description)
    if model in ("bert", "t5"):
        from rlx.io.tokenizer_encoder import build_encoder_tokenizer

        return build_encoder_tokenizer(description, model)
    raise TokenizerError(
        "the file has no vocabulary that RLX can use",
        where=f"{file.path}, tokenizer.ggml.model",
        found=repr(model),
        expected="'gpt2', 'llama', 'bert' or 't5'",
        fix="use the Hugging Face folder of the model, whose tokenizer.json says everything",
    )


def _facts(description: Description, **how: Any) -> TokenizerFacts:
    """What does not depend on the kind of vocabulary. `how`: style, leading_space, add_bos (the default)."""
    bos_id, eos_id = description.token_id("bos_token_id"), description.token_id("eos_token_id")
    special = frozenset(description.ids_of_type(CONTROL, UNKNOWN))
    ends = {eos_id, description.token_id("eot_token_id"), description.token_id("eom_token_id")}
    ends |= {token_id for token_id in special if description.tokens[token_id] in END_OF_TURN}
    add_bos = description.flag("add_bos_token", how.pop("add_bos"))
    add_eos = description.flag("add_eos_token", False)
    return TokenizerFacts(
        bos_id=bos_id,
        eos_ids=frozenset(token_id for token_id in ends if token_id is not None),
        special_ids=special,
        added_ids=special | frozenset(description.ids_of_type(USER_DEFINED)),
        prefix_ids=(bos_id,) if add_bos and bos_id is not None else (),
        suffix_ids=(eos_id,) if add_eos and eos_id is not None else (),
        symbols=description.tokens,
        **how,
    )


def _byte_level(description: Description) -> Tokenizer:
    rules = _pre_tokenizer(description)
    backend = _backend(description, _listed_merges(description), ignore_merges=rules.ignore_merges)
    _follow_rules(backend, rules)
    return Tokenizer(backend, _byte_level_facts(description, rules))


def _byte_level_facts(description: Description, rules: PreTokenizer) -> TokenizerFacts:
    return _facts(description, style="byte_level", add_bos=rules.add_bos)


def _follow_rules(backend: Any, rules: PreTokenizer) -> None:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)
    backend.decoder = decoders.ByteLevel()


def _pre_tokenizer(description: Description) -> PreTokenizer:
    name = description.text("pre")
    rules = PRE_TOKENIZERS.get(name)
    if rules is None:
        raise description.error("pre", "RLX does not know how this vocabulary splits text", repr(name))
    return rules


def _listed_merges(description: Description) -> list[tuple[str, str]]:
    merges = description.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, StringArray):
        raise description.error("merges", "a BPE vocabulary needs its merges", found="none")
    if merges.longest() - 1 > description.longest_token:
        # The library's own check of this is a panic, which prints.
        raise description.error("merges", "a merge gives something longer than every token")
    return merges.pairs()


def _sentencepiece(description: Description) -> Tokenizer:
    leading_space = description.flag("add_space_prefix", True)
    unknown = description.token_id("unknown_token_id")
    unknown_token = None if unknown is None else description.tokens[unknown]
    backend = _backend(description, _scored_merges(description), **_fallback(unknown_token))
    _follow_sentencepiece(backend, leading_space)
    return Tokenizer(backend, _sentencepiece_facts(description, leading_space))


def _sentencepiece_facts(description: Description, leading_space: bool) -> TokenizerFacts:
    return _facts(description, style="sentencepiece", add_bos=True, leading_space=leading_space)


def _fallback(unknown_token: str | None) -> dict[str, Any]:
    return {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown_token}


def _follow_sentencepiece(backend: Any, leading_space: bool) -> None:
    from tokenizers import decoders, normalizers

    steps: list[Any] = [normalizers.Prepend(_SPACE)] if leading_space else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def _scored_merges(description: Description) -> list[tuple[str, str]]:
    """SentencePiece merges the pair whose union has the best score; the same as merges in the order of the scores."""
    scores = description.numbers("scores")
    if scores is None:
        raise description.error("scores", "a SentencePiece vocabulary needs its scores", found="none")
    whole = set(description.ids_of_type(UNKNOWN, CONTROL, BYTE))
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


def _backend(description: Description, merges: Sequence[tuple[str, str]], **options: Any) -> Any:
    tokens = description.tokens
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    try:
        return _bpe(vocabulary, merges, _added(description), **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and a panic that is none
        raise description.error("merges", "the vocabulary and its merges do not fit together", str(error)) from None


def _added(description: Description) -> list[tuple[str, bool]]:
    """The tokens that are found in a text before all else, and whether each is special."""
    special = set(description.ids_of_type(CONTROL, UNKNOWN))
    ids = description.ids_of_type(CONTROL, UNKNOWN, USER_DEFINED)
    return [(description.tokens[index], index in special) for index in ids if description.tokens[index]]


def _bpe(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], added: Sequence[tuple[str, bool]], **options: Any
) -> Any:
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Backend

    backend: Any = Backend(models.BPE(vocabulary, merges, **options))
    backend.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in added])
    return backend


def index_of(file: GGUFFile) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """What `indexed` needs of a file: plain values for JSON, and arrays. None for a vocabulary that has no index.

    Raises:
        TokenizerError: as for `build`.
    """
    description = Description(file)
    model = description.text("model")
    if model == "gpt2":
        rules = _pre_tokenizer(description)
        merges, facts = _listed_merges(description), _byte_level_facts(description, rules)
        plain: dict[str, Any] = {"pre": description.text("pre")}
    elif model == "llama":
        facts = _sentencepiece_facts(description, description.flag("add_space_prefix", True))
        unknown = description.token_id("unknown_token_id")
        merges = _scored_merges(description)
        plain = {"unknown_token": None if unknown is None else description.tokens[unknown]}
    else:
        return None
    always = description.ids_of_type(CONTROL, UNKNOWN, USER_DEFINED, BYTE)
    arrays = index_arrays(description.tokens, merges, always)
    if arrays is None:
        return None
    return {**plain, "facts": facts.to_plain(), "added": _added(description)}, arrays


def indexed(plain: Mapping[str, Any], arrays: Arrays, path: Path) -> Tokenizer:
    """The tokenizer whose file was described by `index_of`: it reads the file when the whole vocabulary is needed."""
    index = VocabularyIndex(arrays)
    facts = TokenizerFacts.from_plain(plain["facts"], index.strings)

    def make(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
        if facts.style == "byte_level":
            rules = PRE_TOKENIZERS[plain["pre"]]
            backend = _bpe(vocabulary, merges, plain["added"], ignore_merges=rules.ignore_merges)
            _follow_rules(backend, rules)
        else:
            backend = _bpe(vocabulary, merges, plain["added"], **_fallback(plain["unknown_token"]))
            _follow_sentencepiece(backend, facts.leading_space)
        return backend

    small = SmallVocabularies(index, facts.style == "byte_level", make)
    return Tokenizer(lambda: build(open_gguf(path)).backend, facts, small.backend_for)
