"""Builds the tokenizers of encoders from the `tokenizer.ggml.*` metadata of a GGUF file.

Two kinds: "bert" (WordPiece; the file marks the start of a word with U+2581 where vocab.txt marks its continuation with
##) and "t5" (SentencePiece unigram with scores: XLM-RoBERTa). Both put a token before a text and one behind it. Source:
llama.cpp's converter (conversion/bert.py) and llama-vocab.cpp, and the tokenizer.json files of the models. Next:
`tokenizer.py`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlx.errors import RlxError
from rlx.io.tokenizer import Tokenizer, TokenizerFacts
from rlx.io.tokenizer_description import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Description

_SPACE = "\u2581"
_CONTINUES = "##"
_CHARACTERS_OF_A_WORD = 100
"""A longer word is unknown, in BERT's own tokenizer as well."""


def build_encoder_tokenizer(description: Description, model: str) -> Tokenizer:
    """The tokenizer of a vocabulary of the kind "bert" or "t5".

    Raises:
        TokenizerError: the description is incomplete, or asks for something that RLX does not do.
    """
    try:
        return _wordpiece(description) if model == "bert" else _unigram(description)
    except (KeyboardInterrupt, SystemExit, RlxError):
        raise
    except BaseException as error:  # the library raises plain Exception, and a panic that is none
        raise description.error("tokens", "the vocabulary cannot be used", str(error)[:200]) from None


def _wordpiece(description: Description) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    control = set(description.ids_of_type(CONTROL, UNKNOWN))
    symbols = [text if i in control else _as_in_vocab_txt(text) for i, text in enumerate(description.tokens)]
    unknown = description.token_id("unknown_token_id")
    unknown = 100 if unknown is None else unknown
    first = _named(description, "cls_token_id", "bos_token_id", 101)
    # the key is spelled like this in the format
    last = _named(description, "seperator_token_id", "eos_token_id", 102)
    if len(set(symbols)) < len(symbols) or max(unknown, first, last) >= len(symbols):
        raise description.error("tokens", "the vocabulary has an entry twice, or lacks a special token")
    lowercase = description.flag("normalizer.lowercase", True)
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    backend: Any = Backend(
        models.WordPiece(
            vocabulary,
            unk_token=symbols[unknown],
            max_input_chars_per_word=_CHARACTERS_OF_A_WORD,
            continuing_subword_prefix=_CONTINUES,
        )
    )
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=description.flag("normalizer.strip_accents", lowercase)
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=_CONTINUES, cleanup=False)
    _add_special(backend, description)
    pair = f"{symbols[first]} $A {symbols[last]} $B:1 {symbols[last]}:1"
    _put_around(backend, pair, symbols, first, last)
    return Tokenizer(backend, _facts(description, first, last, symbols, "wordpiece"))


def _as_in_vocab_txt(text: str) -> str:
    return text[1:] if text.startswith(_SPACE) else _CONTINUES + text


def _unigram(description: Description) -> Tokenizer:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    scores = description.numbers("scores")
    if scores is None:
        raise description.error("scores", "a unigram vocabulary needs its scores", found="none")
    for key in ("add_space_prefix", "remove_extra_whitespaces", "add_bos_token", "add_eos_token"):
        if not description.flag(key, True):
            raise description.error(key, "only the unigram vocabularies of XLM-RoBERTa are known", False, True)
    unknown = _named(description, "unknown_token_id", "unknown_token_id", 2)
    first, last = _named(description, "bos_token_id", "cls_token_id", 0), _named(description, "eos_token_id", "", 1)
    symbols = description.tokens
    if max(unknown, first, last) >= len(symbols):
        raise description.error("tokens", "the vocabulary lacks a special token")
    backend: Any = Backend(models.Unigram([*zip(symbols, map(float, scores), strict=True)], unknown, False))
    charsmap = description.metadata.get("tokenizer.ggml.precompiled_charsmap")
    extra_spaces = ((r"\A +| +\z", ""), (" {2,}", " "))
    steps: list[Any] = [normalizers.Replace(Regex(pattern), by) for pattern, by in extra_spaces]
    if isinstance(charsmap, np.ndarray):
        steps.insert(0, normalizers.Precompiled(cast("NDArray[Any]", charsmap).astype(np.uint8).tobytes()))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "always")
    backend.decoder = decoders.Metaspace(_SPACE, "always")
    _add_special(backend, description)
    begin, end = symbols[first], symbols[last]
    _put_around(backend, f"{begin} $A {end} {end} $B {end}", symbols, first, last)
    return Tokenizer(backend, _facts(description, first, last, symbols, "sentencepiece"))


def _named(description: Description, key: str, other: str, default: int) -> int:
    """The id that one of two keys names, or what llama.cpp assumes."""
    found = description.token_id(key)
    found = description.token_id(other) if found is None and other else found
    return default if found is None else found


def _add_special(backend: Any, description: Description) -> None:
    from tokenizers import AddedToken

    special = set(description.ids_of_type(CONTROL, UNKNOWN))
    backend.add_tokens(
        [
            AddedToken(description.tokens[index], special=index in special, normalized=False)
            for index in description.ids_of_type(CONTROL, UNKNOWN, USER_DEFINED)
            if description.tokens[index]
        ]
    )


def _put_around(backend: Any, pair: str, symbols: list[str], first: int, last: int) -> None:
    """What stands around a text, and around two."""
    from tokenizers import processors

    tokens = [(symbols[first], first), (symbols[last], last)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{symbols[first]} $A {symbols[last]}", pair=pair, special_tokens=tokens
    )


def _facts(description: Description, first: int, last: int, symbols: list[str], style: Any) -> TokenizerFacts:
    special = frozenset(description.ids_of_type(CONTROL, UNKNOWN))
    return TokenizerFacts(
        style=style,
        bos_id=first,
        eos_ids=frozenset((last,)),
        special_ids=special,
        added_ids=special | frozenset(description.ids_of_type(USER_DEFINED, UNUSED)),
        post_process=True,
        leading_space=True,
        symbols=symbols,
    )
