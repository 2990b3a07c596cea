"""The byte alphabet of GPT-2: one printable character per byte, so that any text is a string of vocabulary symbols.

Printable ASCII and most of Latin-1 stand for themselves; the other 68 bytes are numbered from U+0100 in order.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Used by `tokenizer.py`.
"""

from __future__ import annotations


def _alphabet() -> dict[int, str]:
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


BYTE_TO_CHARACTER: dict[int, str] = _alphabet()
CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def symbol_bytes(symbol: str) -> bytes:
    """The bytes of a vocabulary entry; an entry outside the alphabet (an added token) is its own UTF-8."""
    try:
        return bytes([CHARACTER_TO_BYTE[character] for character in symbol])
    except KeyError:
        return symbol.encode()
