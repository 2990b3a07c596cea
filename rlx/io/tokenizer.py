"""Text to token ids and back, and ids to text as they arrive.

In goes a GGUF file or a folder with a tokenizer.json, out comes a `Tokenizer`. Splitting and merging are done by the
`tokenizers` library; ids become text here, from the bytes of each token, so that a stream of pieces and the decoding
of the whole agree. The builders are in `tokenizer_gguf.py` and `tokenizer_folder.py`. Next: `chat_template.py`.
"""

from __future__ import annotations

import codecs
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlx.errors import InputError
from rlx.io.byte_level import symbol_bytes

if TYPE_CHECKING:
    from rlx.io.checkpoint import Checkpoint

TokenStyle = Literal["byte_level", "sentencepiece", "wordpiece"]

# Tokens that end a turn or a text, by their text: no file format marks them all.
END_OF_TURN = frozenset(
    (
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<turn|>",
        "<|eot|>",
        "<EOT>",
        "<|END_OF_TURN_TOKEN|>",
        "<|end_of_turn|>",
        "<end_of_utterance>",
        "</s>",
        "<eos>",
    )
)

_SETS = ("eos_ids", "special_ids", "added_ids")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a builder found out about a vocabulary.

    Attributes:
        style: how a vocabulary entry spells its bytes.
        bos_id: beginning-of-sequence token, or None.
        eos_ids: every token that ends a text or a turn.
        special_ids: control tokens, which `decode` skips.
        added_ids: tokens whose entry is plain text rather than symbols of the style.
        prefix_ids, suffix_ids: what `encode(add_special=True)` puts around a text.
        post_process: the library's post-processor puts it there instead.
        leading_space: a space was put before the text, so that decoding takes one away.
        token_types: the model is told which of two texts a token is from; else all tokens have type 0.
        symbols: the vocabulary by id; empty to ask the library.
    """

    style: TokenStyle
    bos_id: int | None
    eos_ids: frozenset[int]
    special_ids: frozenset[int]
    added_ids: frozenset[int] = frozenset()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    post_process: bool = False
    leading_space: bool = False
    token_types: bool = True
    symbols: Sequence[str] = field(default=(), repr=False)

    def to_plain(self) -> dict[str, Any]:
        """All but the symbols, as values that JSON holds."""
        plain = {slot.name: getattr(self, slot.name) for slot in fields(self) if slot.name != "symbols"}
        sets = {name: sorted(plain[name]) for name in _SETS}
        return {**plain, **sets}

    @staticmethod
    def from_plain(plain: Mapping[str, Any], symbols: Sequence[str]) -> TokenizerFacts:
        """What `to_plain` was made of, with these symbols."""
        given: dict[str, Any] = dict(plain)
        given |= {name: frozenset(plain[name]) for name in _SETS}
        given |= {name: tuple(plain[name]) for name in ("prefix_ids", "suffix_ids")}
        return TokenizerFacts(**given, symbols=symbols)


@dataclass(frozen=True, slots=True)
class TypedTokens:
    """Token ids of a text or of a pair of texts, and which of the two each belongs to."""

    ids: list[int]
    types: list[int]


def _parts(texts: Sequence[str | tuple[str, str]]) -> Iterable[str]:
    for text in texts:
        yield from text if isinstance(text, tuple) else (text,)


def _cut_longest(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths within `room`: tokens are taken off the longer text, off the second of two equal ones."""
    excess = max(0, first + second - room)
    level = min(excess, abs(first - second))
    first, second = (first - level, second) if first > second else (first, second - level)
    excess -= level
    return first - excess // 2, second - (excess - excess // 2)


class Tokenizer:
    """A vocabulary with its rules.

    Attributes:
        bos_id: beginning-of-sequence token, or None.
        eos_ids: tokens that end a text or a turn.
        special_ids: control tokens.
        vocab_size: number of ids.
        facts: what its builder found out.

    Args:
        backend: the `tokenizers.Tokenizer`, or what makes it when it is first needed.
        facts: what is known of the vocabulary; with its symbols if `backend` is still to be made.
        small: gives a backend for one text that encodes it as the whole one would, or None.
    """

    def __init__(
        self,
        backend: Any | Callable[[], Any],
        facts: TokenizerFacts,
        small: Callable[[str], Any | None] | None = None,
    ) -> None:
        self._backend: Any = None if callable(backend) else backend
        self._make, self._small, self.facts = backend, small, facts
        self._lock = threading.Lock()
        self.bos_id, self.eos_ids, self.special_ids = facts.bos_id, facts.eos_ids, facts.special_ids
        self.vocab_size: int = len(facts.symbols) or int(self.backend.get_vocab_size(with_added_tokens=True))
        self._bytes: dict[int, bytes] = {}
        self._literal: Any = None

    @property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer` with the whole vocabulary."""
        with self._lock:
            if self._backend is None:
                self._backend = self._make()
            return self._backend

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The token ids of a text.

        Args:
            text: any Unicode text.
            add_special: put the beginning and end tokens around it where the model wants them.
            parse_special: read the spelling of a control token in the text as that token; False for text that is
                not trusted, where it stays text.

        Raises:
            InputError: the text is not a string or holds half a surrogate pair.
        """
        backend = self._backend_for(text) if parse_special else self._literal_backend()
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=add_special and self.facts.post_process).ids
        except (TypeError, UnicodeEncodeError):
            raise InputError(
                "this is not text that can be tokenised", found=repr(text)[:80], expected="a string of whole characters"
            ) from None
        if add_special and not self.facts.post_process:
            return [*self.facts.prefix_ids, *ids, *self.facts.suffix_ids]
        return ids

    def _backend_for(self, text: str) -> Any:
        if self._backend is None and self._small is not None:
            backend = self._small(text)
            if backend is not None:
                return backend
        return self.backend

    def encode_batch(self, texts: Sequence[str | tuple[str, str]], max_tokens: int) -> list[TypedTokens]:
        """Token ids and token types of many texts, or pairs of texts, special tokens around them; all cores at once.

        What is longer than `max_tokens` is cut at its end; of a pair the longer text, token by token.

        Raises:
            InputError: a text is not a string or holds half a surrogate pair, or the special tokens alone are too many.
        """
        try:
            plain: list[Any] = self.backend.encode_batch([*_parts(texts)], add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            raise InputError(
                "these are not texts that can be tokenised", expected="strings of whole characters"
            ) from None
        parts = iter(plain)
        return [
            self._around(next(parts), next(parts) if isinstance(text, tuple) else None, max_tokens) for text in texts
        ]

    def _around(self, first: Any, second: Any, max_tokens: int) -> TypedTokens:
        """Cut one or two encodings and put the special tokens around them."""
        facts = self.facts
        special = len(facts.prefix_ids) + len(facts.suffix_ids)
        if facts.post_process:
            special = int(self.backend.num_special_tokens_to_add(second is not None))
        room = max_tokens - special
        if room < 1 + (second is not None):
            raise InputError("there is no room for a token of the text", found=max_tokens, expected=f"> {special}")
        if second is not None:
            lengths = _cut_longest(len(first), len(second), room)
            second.truncate(lengths[1])
        else:
            lengths = (min(len(first), room), 0)
        first.truncate(lengths[0])
        if facts.post_process:
            whole = self.backend.post_process(first, second)
            types = list(whole.type_ids) if facts.token_types else [0] * len(whole.ids)
            return TypedTokens(list(whole.ids), types)
        if second is not None:
            raise InputError("this tokenizer does not say how two texts are put together")
        ids = [*facts.prefix_ids, *first.ids, *facts.suffix_ids]
        return TypedTokens(ids, [0] * len(ids))

    def _literal_backend(self) -> Any:
        """A second tokenizer over the same model that does not recognise control tokens."""
        if self._literal is None:
            from tokenizers import Tokenizer as Backend

            literal: Any = Backend(self.backend.model)  # the two share the vocabulary
            for part in ("normalizer", "pre_tokenizer", "post_processor"):
                if getattr(self.backend, part) is not None:
                    setattr(literal, part, getattr(self.backend, part))
            literal.add_tokens(list(self.backend.get_added_tokens_decoder().values()))
            literal.encode_special_tokens = True
            self._literal = literal
        return self._literal

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; empty for an id without an entry (vocabularies are padded to round sizes).

        Raises:
            InputError: the id is negative.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id < 0:
            raise InputError("a token id cannot be negative", found=token_id)
        facts = self.facts
        if facts.symbols:
            symbol = facts.symbols[token_id] if token_id < len(facts.symbols) else None
        else:
            symbol = self.backend.id_to_token(token_id)
        if symbol is None:
            return b""
        if token_id in facts.added_ids:
            return symbol.encode()
        if facts.style == "byte_level":
            return symbol_bytes(symbol)
        if facts.style == "wordpiece":
            return symbol[2:].encode() if symbol.startswith("##") else b" " + symbol.encode()
        byte = _BYTE_PIECE.fullmatch(symbol)
        return bytes([int(byte[1], 16)]) if byte else symbol.replace("\u2581", " ").encode()

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            skip_special: leave control tokens out.
            continuation: the ids follow other text, so a leading space is kept.
        """
        stream = self.stream(skip_special=skip_special, continuation=continuation)
        return "".join([stream.push(token_id) for token_id in ids]) + stream.flush()

    def stream(self, *, skip_special: bool = True, continuation: bool = False) -> DecodeStream:
        """A decoder for ids that arrive one by one; arguments as for `decode`."""
        return DecodeStream(self, skip_special, self.facts.leading_space and not continuation)


class DecodeStream:
    """Turns ids into text piece by piece; the pieces together are the decoding of the whole.

    A character whose bytes are spread over tokens appears when its last byte has arrived.
    """

    __slots__ = ("_decoder", "_skip_special", "_strip_space", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special: bool, strip_space: bool) -> None:
        self._tokenizer, self._skip_special, self._strip_space = tokenizer, skip_special, strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Take one id and give the text that became complete, often none."""
        if self._skip_special and token_id in self._tokenizer.special_ids:
            return ""
        return self._emit(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """End the text: bytes still held back become U+FFFD."""
        return self._emit(self._decoder.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if text and self._strip_space:
            self._strip_space = False
            return text.removeprefix(" ")
        return text


def tokenizer_from_gguf(file: Checkpoint) -> Tokenizer:
    """Build the tokenizer a GGUF file describes in its `tokenizer.ggml.*` metadata.

    Raises:
        TokenizerError: the description is missing, damaged, or of a kind RLX does not know.
    """
    from rlx.io.tokenizer_gguf import build

    return build(file)


def tokenizer_from_folder(path: str | Path) -> Tokenizer:
    """Build the tokenizer of a Hugging Face folder from its tokenizer.json and configuration files.

    Raises:
        TokenizerError: the files are missing or damaged.
    """
    from rlx.io.tokenizer_folder import build

    return build(Path(path))


def tokenizer_from(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of an opened model file or folder.

    Raises:
        TokenizerError: see `tokenizer_from_gguf` and `tokenizer_from_folder`.
    """
    if checkpoint.kind == "gguf":
        return tokenizer_from_gguf(checkpoint)
    return tokenizer_from_folder(checkpoint.path)
