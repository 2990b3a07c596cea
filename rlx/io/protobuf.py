"""The wire format of protocol buffers, as far as reading a file needs it: fields of a message, one behind the other.

In: a message's bytes. Out: numbers of fields with their values; nothing is copied, and every length is checked against
the message before it is used. Source: the encoding page of the protocol buffers documentation. Next: `onnx_file.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rlx.errors import FileFormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `stop - 1` of a buffer: a message, a string, packed numbers."""

    buffer: memoryview
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def bytes(self) -> bytes:
        """A copy of the bytes."""
        return bytes(self.buffer[self.start : self.stop])

    def text(self) -> str:
        """The bytes as text.

        Raises:
            FileFormatError: they are not UTF-8.
        """
        try:
            return self.bytes().decode()
        except UnicodeDecodeError:
            raise damaged("a text is not UTF-8", self.start) from None


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Attributes:
        number: what the schema knows it by.
        value: a whole number (of a varint, without sign), or the bytes of anything else.
    """

    number: int
    value: int | Span

    def span(self) -> Span:
        """The bytes.

        Raises:
            FileFormatError: the field is a number.
        """
        if isinstance(self.value, int):
            raise damaged(f"field {self.number} is a number where bytes belong", self.value)
        return self.value

    def integer(self) -> int:
        """A signed number of 64 bits.

        Raises:
            FileFormatError: the field is no number.
        """
        if not isinstance(self.value, int):
            raise damaged(f"field {self.number} is bytes where a number belongs", self.value.start)
        return self.value - (1 << 64) if self.value >= 1 << 63 else self.value


def damaged(what: str, place: int) -> FileFormatError:
    """The error for a message that is not well formed."""
    return FileFormatError("the protocol buffer is damaged", found=f"{what}, at {place}", fix="fetch the file again")


def fields(message: Span) -> Iterator[Field]:
    """The fields of a message, in order.

    Raises:
        FileFormatError: a field runs past the message's end, or is of a kind that does not exist.
    """
    at = message.start
    while at < message.stop:
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise damaged("a field has no number", at)
        if kind == VARINT:
            value, at = varint(message, at)
            yield Field(number, value)
            continue
        if kind == BYTES:
            length, at = varint(message, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise damaged(f"field {number} is of the unknown kind {kind}", at)
        if length > message.stop - at:
            raise damaged(f"field {number} of {length} bytes runs past the end", at)
        yield Field(number, Span(message.buffer, at, at + length))
        at += length


def varint(span: Span, at: int) -> tuple[int, int]:
    """The number of up to 64 bits that begins at `at`, and where it ends.

    Raises:
        FileFormatError: it runs past the end or has more bits.
    """
    value = shift = 0
    while True:
        if at >= span.stop or shift > 63:
            raise damaged("a number has no end", at)
        byte = span.buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7


def integers(field: Field) -> Iterator[int]:
    """The signed numbers of a repeated field: one, or several packed."""
    if isinstance(field.value, int):
        yield field.integer()
        return
    at = field.value.start
    while at < field.value.stop:
        value, at = varint(field.value, at)
        yield Field(field.number, value).integer()
