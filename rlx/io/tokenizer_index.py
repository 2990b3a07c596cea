"""A vocabulary that is looked up instead of loaded: what a warm start encodes its first prompts with.

In: the description of a BPE vocabulary in a GGUF file. Out: arrays that are kept on disk, and from them a `Tokenizer`
that is ready at once. To encode a text, BPE can only ever use entries that occur in the text; so a vocabulary of just
those entries, and the merges among them in their order, gives the same ids as the whole one. Finding them takes a
millisecond, where building a vocabulary of 128,000 entries takes a quarter of a second. A long text, and a caller that
encodes many, gets the whole vocabulary, which is built from the file when it is first needed.

Entries are found by a polynomial hash, which is computed for all pieces of a text at once; a match is compared.
Next: `tokenizer_gguf.py` for what the parts mean, `rlx/runtime/start_cache.py` for where the arrays are kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from rlx.io.byte_level import BYTE_TO_CHARACTER

Arrays = Mapping[str, NDArray[Any]]

MAX_LOOKUPS = 1 << 17
"""Pieces of a text that are looked up, about 10 ms; a text with more is left to the whole vocabulary."""
MAX_SMALL = 8
"""Texts encoded with a vocabulary of their own before the whole one is built."""

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_SPACE = "\u2581"


class PackedStrings(Sequence[str]):
    """Strings that lie one after the other in UTF-8, decoded one by one.

    Args:
        data: uint8, all strings.
        ends: `[n + 1]`, where each begins, and where the last one ends.
    """

    __slots__ = ("_data", "_ends")

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.uint32]) -> None:
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._data[self._ends[index] : self._ends[index + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


def packed(strings: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """The two arrays of `PackedStrings`."""
    encoded = [string.encode() for string in strings]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64).astype(np.uint32)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def index_arrays(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], always: Sequence[int]
) -> dict[str, NDArray[Any]] | None:
    """The arrays of a vocabulary.

    Args:
        tokens: the entries by id.
        merges: in the order of their priority.
        always: ids that belong to every small vocabulary: added tokens, bytes, the unknown token.

    Returns:
        None if two entries have one hash, or a merge names no entry; such a vocabulary is always loaded whole.
    """
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    try:
        triples = [(ids[left], ids[right], ids[left + right]) for left, right in merges]
    except KeyError:
        return None
    distinct = [string for string in ids if string]
    hashes = _hashes(distinct)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    if (ordered[1:] == ordered[:-1]).any():
        return None
    left, right, made = np.array(triples, np.uint32).reshape(-1, 3).T
    by_result = np.argsort(made, kind="stable")
    data, ends = packed(tokens)
    return {
        "data": data,
        "ends": ends,
        "hashes": ordered,
        "ids": np.array([ids[string] for string in distinct], np.uint32)[order],
        "merge_starts": np.searchsorted(made[by_result], np.arange(len(tokens) + 1)).astype(np.uint32),
        "merge_ranks": by_result.astype(np.uint32),
        "merge_left": left[by_result],
        "merge_right": right[by_result],
        "always": np.array(sorted(set(always)), np.uint32),
        "longest": np.array([max(map(len, tokens), default=0)], np.uint32),
    }


def _powers(factor: int, count: int) -> NDArray[np.uint64]:
    powers = np.full(count, factor, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _code_points(text: str) -> NDArray[np.uint64]:
    # plus one, so that no character is zero and the length counts
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64) + np.uint64(1)


def _prefix_sums(points: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`[n + 1]`: sum of point k times base**k, for all before each place, modulo 2**64."""
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(points * _powers(_BASE, len(points)), out=sums[1:])
    return sums


def _hashes(strings: Sequence[str]) -> NDArray[np.uint64]:
    """The hash of each string: sum of its point k times base**k."""
    starts = np.cumsum([0, *map(len, strings)])
    points = _code_points("".join(strings))
    sums = _prefix_sums(points)
    return (sums[starts[1:]] - sums[starts[:-1]]) * _powers(_INVERSE, len(points) + 1)[starts[:-1]]


class VocabularyIndex:
    """The arrays of `index_arrays`, ready for look-ups."""

    def __init__(self, arrays: Arrays) -> None:
        self.strings = PackedStrings(arrays["data"], arrays["ends"])
        self._arrays = arrays
        self._longest = int(arrays["longest"][0])

    def pieces(self, text: str, prefixed: str = "") -> set[int] | None:
        """The ids of all entries that occur in a text; None if that is too much work.

        Args:
            text: in the alphabet of the entries.
            prefixed: a character; entries that are it followed by a part of the text count as well.
        """
        longest = min(self._longest, len(text))
        if len(text) * longest > MAX_LOOKUPS:
            return None
        points = _code_points(text)
        sums, inverse = _prefix_sums(points), _powers(_INVERSE, len(points) + 1)
        found: set[int] = set()
        for length in range(longest + 1):
            hashes = (sums[length:] - sums[: len(sums) - length]) * inverse[: len(sums) - length]
            found |= self._matches(text, length, hashes, "")
            if prefixed:
                first = np.uint64(ord(prefixed) + 1)
                found |= self._matches(text, length, first + hashes * np.uint64(_BASE), prefixed)
        return found

    def _matches(self, text: str, length: int, hashes: NDArray[np.uint64], prefix: str) -> set[int]:
        table = self._arrays["hashes"]
        places = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
        hits = np.flatnonzero(table[places] == hashes)
        ids = self._arrays["ids"][places[hits]].tolist()
        pairs = zip(hits.tolist(), ids, strict=True)
        return {token for at, token in pairs if self.strings[token] == prefix + text[at : at + length]}

    def merges(self, ids: set[int]) -> list[tuple[int, int]]:
        """The merges whose two sides and result are among `ids`, in the order of their priority."""
        arrays = self._arrays
        kept: list[tuple[int, int, int]] = []
        for token in ids:
            for at in range(int(arrays["merge_starts"][token]), int(arrays["merge_starts"][token + 1])):
                left, right = int(arrays["merge_left"][at]), int(arrays["merge_right"][at])
                if left in ids and right in ids:
                    kept.append((int(arrays["merge_ranks"][at]), left, right))
        return [(left, right) for _, left, right in sorted(kept)]

    def always(self) -> set[int]:
        """The ids that belong to every small vocabulary."""
        return set(self._arrays["always"].tolist())

    def characters(self, text: str) -> set[str]:
        """The characters of a text that are entries by themselves."""
        found = self._matches(text, 1, _code_points(text), "")
        return {self.strings[token] for token in found}


class SmallVocabularies:
    """Makes the backend for one text at a time.

    Args:
        index: the vocabulary.
        byte_level: whether entries are spelt in the byte-level alphabet; else they are SentencePiece's.
        make: from a vocabulary and merges to a backend with all the rules of the model.
    """

    def __init__(
        self,
        index: VocabularyIndex,
        byte_level: bool,
        make: Callable[[dict[str, int], list[tuple[str, str]]], Any],
    ) -> None:
        self._index, self._byte_level, self._make = index, byte_level, make
        self._uses = 0

    def backend_for(self, text: str) -> Any | None:
        """A backend that encodes this text as the whole vocabulary would; None where the whole one is the better way.

        Only text in normal form C is taken: some rules normalise, and what that does depends on where a text is cut.
        """
        self._uses += 1
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # the library refuses it
            return None
        if self._uses > MAX_SMALL or not unicodedata.is_normalized("NFC", text):
            return None
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            return None
        if self._byte_level:
            # a byte without an entry is dropped, and what stands on both sides of it may then be one piece
            spelt = "".join([BYTE_TO_CHARACTER[byte] for byte in raw])
            known = self._index.characters(spelt)
            ids = self._index.pieces("".join([character for character in spelt if character in known]))
        else:
            ids = self._index.pieces(text.replace(" ", _SPACE), prefixed=_SPACE)
        if ids is None:
            return None
        ids |= self._index.always()
        strings = self._index.strings
        merges = [(strings[left], strings[right]) for left, right in self._index.merges(ids)]
        return self._make({strings[token]: token for token in ids}, merges)
