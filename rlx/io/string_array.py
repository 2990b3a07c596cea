"""The strings of a GGUF array, decoded all at once.

A vocabulary and its merges are 100,000 strings, and reading them is a good part of the start of a model, so they are
decoded as one text and split by the library's own loops. Used by `gguf.py` and `tokenizer_gguf.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from rlx.errors import FileFormatError
from rlx.io.mapped_file import MappedFile

_LENGTH = struct.Struct("<Q")
_SEPARATOR = "\0" * _LENGTH.size


class StringArray(Sequence[str]):
    """An array of strings in the file; nothing is decoded until it is asked for.

    Indexing and iterating keep the decoded list; `decoded` and `pairs` make a new one that the caller may drop.
    The reader has checked that the strings lie inside the file.
    """

    __slots__ = ("_count", "_end", "_fields", "_file", "_start", "_strings")

    def __init__(self, file: MappedFile, start: int, end: int, count: int) -> None:
        self._file, self._start, self._end, self._count = file, start, end, count
        self._strings: list[str] | None = None
        self._fields: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._kept()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept())

    def __repr__(self) -> str:
        return f"StringArray({self._count} strings)"

    def _kept(self) -> list[str]:
        if self._strings is None:
            self._strings = self.decoded()
        return self._strings

    def decoded(self) -> list[str]:
        """All strings.

        Raises:
            FileFormatError: one of them is not UTF-8.
        """
        region, starts = self._region()
        if not self._separable(region):
            return self._one_by_one(starts)
        return self._text(region).split(_SEPARATOR)[1:]

    def pairs(self) -> list[tuple[str, str]]:
        """Strings of the form "left right", split at their space: the merges of a BPE vocabulary.

        Raises:
            FileFormatError: one of them is not UTF-8 or has no space.
        """
        region, starts = self._region()
        spaces = np.add.reduceat(region == 0x20, starts, dtype=np.int64) if self._count else starts
        if self._separable(region) and (spaces == 1).all():
            flat = self._text(region).replace(_SEPARATOR, " ").split(" ")
            return list(zip(flat[1::2], flat[2::2], strict=True))
        split = [string.partition(" ") for string in self._one_by_one(starts)]
        for index, (left, space, _) in enumerate(split):
            if not space:
                raise FileFormatError(
                    "a merge is not two symbols", where=f"{self._file.path}, merge {index}", found=repr(left)
                )
        return [(left, right) for left, _, right in split]

    def longest(self) -> int:
        """Bytes of the longest string, 0 if there is none."""
        ends = np.append(self._starts()[1:], self._end - self._start)
        return int((ends - self._starts()).max()) - 8 if self._count else 0

    def _starts(self) -> NDArray[np.int64]:
        """Where the length fields are, counted from the first."""
        if self._fields is None:
            buffer, position, read_length = self._file.buffer, self._start, _LENGTH.unpack_from
            positions: list[int] = []
            append = positions.append
            for _ in range(self._count):
                append(position)
                position += read_length(buffer, position)[0] + 8
            self._fields = np.array(positions, dtype=np.int64) - self._start
        return self._fields

    def _region(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """A copy of the bytes with every length field zeroed, and where those fields are."""
        starts = self._starts()
        region = self._file.view(self._start, self._end - self._start).copy()
        region[starts[:, None] + np.arange(8)] = 0
        return region, starts

    def _separable(self, region: NDArray[np.uint8]) -> bool:
        """True if no string holds a zero byte, so that the zeroed fields are the only separators."""
        return bool(len(region) - np.count_nonzero(region) == 8 * self._count)

    def _text(self, region: NDArray[np.uint8]) -> str:
        try:
            return region.tobytes().decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(self._start + error.start) from None

    def _one_by_one(self, starts: NDArray[np.int64]) -> list[str]:
        ends = [*starts[1:].tolist(), self._end - self._start]
        strings: list[str] = []
        for start, end in zip(starts.tolist(), ends, strict=True):
            try:
                strings.append(self._file.buffer[self._start + start + 8 : self._start + end].decode())
            except UnicodeDecodeError as error:
                raise self._not_utf8(self._start + start + 8 + error.start) from None
        return strings

    def _not_utf8(self, position: int) -> FileFormatError:
        return FileFormatError(
            "a string is not UTF-8",
            where=f"{self._file.path} at byte {position}",
            fix="the file is damaged: fetch it again",
        )
