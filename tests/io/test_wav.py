"""WAV files: every kind of sample against the standard library's writer or by hand, and files that lie."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlx.errors import InputError
from rlx.io.wav import parse_wav, read_wav

LEVELS = np.array([0, 1, -1, 100, -100, 32767, -32768], np.int64)


def pcm(width: int, channels: int = 1, rate: int = 16_000) -> bytes:
    """LEVELS as the standard library writes them, 16-bit levels scaled to `width` bytes."""
    shift = 8 * (width - 2)
    levels = np.repeat(LEVELS * 2**shift if shift >= 0 else (LEVELS >> 8) + 128, channels)
    if width == 3:
        raw = b"".join(int(level).to_bytes(3, "little", signed=True) for level in levels)
    else:
        raw = levels.astype({1: np.uint8, 2: "<i2", 4: "<i4"}[width]).tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(raw)
    return file.getvalue()


def chunks(*parts: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(raw)) + raw + b"\0" * (len(raw) % 2) for name, raw in parts)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def format_chunk(kind: int = 1, channels: int = 1, rate: int = 8000, bits: int = 16, align: int | None = None) -> bytes:
    align = channels * bits // 8 if align is None else align
    return struct.pack("<HHIIHH", kind, channels, rate, rate * align, align, bits)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_every_width(width: int) -> None:
    audio = parse_wav(pcm(width))
    expected = (LEVELS >> 8) / 128 if width == 1 else LEVELS / 32768
    assert audio.rate == 16_000
    assert audio.samples.dtype == np.float32
    assert np.array_equal(audio.samples, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_floats_and_the_extensible_format(dtype: str) -> None:
    values = np.array([0.25, -1.0, 0.5, 1.0], dtype)
    bits = 8 * values.itemsize
    plain = format_chunk(3, 2, 44_100, bits)
    tail = struct.pack("<HHI", 22, bits, 3) + struct.pack("<H", 3) + bytes.fromhex("000000001000800000aa00389b71")
    extensible = format_chunk(0xFFFE, 2, 44_100, bits) + tail
    for chunk in (plain, extensible):
        audio = parse_wav(chunks((b"fmt ", chunk), (b"LIST", b"odd"), (b"data", values.tobytes())))
        assert audio.samples.tolist() == [-0.375, 0.75]  # the mean of both channels
        assert audio.rate == 44_100


def test_a_stream_whose_length_was_never_written(tmp_path: Path) -> None:
    raw = bytearray(pcm(2))
    place = raw.index(b"data") + 4
    raw[place : place + 4] = b"\xff" * 4
    path = tmp_path / "stream.wav"
    path.write_bytes(raw)
    assert len(read_wav(path).samples) == len(LEVELS)


DAMAGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "mp3": (lambda: b"ID3\x04" + bytes(64), "not a WAV file"),
    "header_alone": (lambda: b"RIFF\x04\0\0\0WAVE", "ends too early"),
    "cut": (lambda: pcm(2)[:-3], "ends too early"),
    "no_samples": (lambda: chunks((b"fmt ", format_chunk()), (b"data", b"")), "no samples"),
    "samples_first": (lambda: chunks((b"data", bytes(8)), (b"fmt ", format_chunk())), "before their format"),
    "short_format": (lambda: chunks((b"fmt ", bytes(8)), (b"data", bytes(8))), "ends too early"),
    "lying_chunk": (lambda: chunks((b"fmt ", format_chunk())) + b"LIST\xff\xff\xff\x7f", "ends too early"),
    "adpcm": (lambda: chunks((b"fmt ", format_chunk(2, bits=4)), (b"data", bytes(8))), "kind that is not read"),
    "no_channels": (lambda: chunks((b"fmt ", format_chunk(channels=0)), (b"data", bytes(8))), "contradicts"),
    "no_rate": (lambda: chunks((b"fmt ", format_chunk(rate=0)), (b"data", bytes(8))), "contradicts"),
    "align": (lambda: chunks((b"fmt ", format_chunk(align=7)), (b"data", bytes(8))), "contradicts"),
    "nan": (
        lambda: chunks((b"fmt ", format_chunk(3, bits=32)), (b"data", np.float32("nan").tobytes())),
        "no numbers",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_one_clear_error(name: str) -> None:
    make, says = DAMAGE[name]
    with pytest.raises(InputError, match=says):
        parse_wav(make(), name)


def test_no_prefix_of_a_file_is_taken_for_another() -> None:
    whole = pcm(3, channels=2)
    for length in range(len(whole)):
        with pytest.raises(InputError):
            parse_wav(whole[:length])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_wav(tmp_path / "missing.wav")
