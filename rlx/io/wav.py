"""WAV files: the chunks of a RIFF file, samples as float32.

In: a file, or its bytes. Out: `Audio`, samples between -1 and 1 and their rate. PCM of 8 (unsigned), 16, 24 and 32
bits and floats of 32 and 64 bits are read, with any number of channels, which are averaged. Every length is compared
with the bytes that are left before anything is made of it. Source: Microsoft's Multimedia Programming Interface 1.0
(RIFF, WAVE) and the WAVEFORMATEXTENSIBLE page. Next: `audio_rate.py`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# The last 14 bytes of a sub-format's GUID; the first two are the format.
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
_MAX_CHANNELS, _RATES = 256, (1_000, 768_000)
_STREAMED = 0xFFFFFFFF
"""The length of a chunk that its writer could not go back to."""


@dataclass(frozen=True, slots=True)
class Audio:
    """Samples of one channel.

    Attributes:
        samples: float32 `[n]`, full scale is -1 to 1.
        rate: samples per second.
    """

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


@dataclass(frozen=True, slots=True)
class _Format:
    kind: int
    channels: int
    rate: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        return self.channels * self.bits // 8


def read_wav(path: str | Path) -> Audio:
    """Read a WAV file.

    Raises:
        InputError: the file cannot be read, is no WAV file, is truncated, or holds no samples or a format that is not
            read.
    """
    try:
        raw = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise InputError("the audio file cannot be read", where=str(path), found=found) from None
    return parse_wav(raw, str(path))


def parse_wav(raw: bytes, where: str = "the audio") -> Audio:
    """The samples in the bytes of a WAV file; see `read_wav`."""
    if not raw:
        raise InputError("the audio file is empty", where=where, expected="a WAV file")
    if len(raw) < 12 or raw[:4] != b"RIFF" or raw[8:12] != b"WAVE":
        raise InputError(
            "this is not a WAV file",
            where=where,
            found=f"a file that begins with {raw[:12]!r}",
            expected="RIFF....WAVE",
            fix="convert it first, for example with `ffmpeg -i FILE out.wav`",
        )
    format_: _Format | None = None
    offset = 12
    while offset + 8 <= len(raw):
        name, length = raw[offset : offset + 4], int.from_bytes(raw[offset + 4 : offset + 8], "little")
        start = offset + 8
        if name == b"data":
            if format_ is None:
                raise InputError("the WAV file has samples before their format", where=where)
            return _samples(raw, start, length, format_, where)
        if start + length > len(raw):
            raise _truncated(where, f"the chunk {name!r} of {length} bytes", len(raw) - start)
        if name == b"fmt ":
            format_ = _format(raw[start : start + length], where)
        offset = start + length + length % 2
    raise _truncated(where, "no samples", len(raw))


def _truncated(where: str, what: str, left: int) -> InputError:
    return InputError(
        "the WAV file ends too early", where=where, found=f"{what}, {left} bytes left", fix="copy the file again"
    )


def _format(chunk: bytes, where: str) -> _Format:
    if len(chunk) < 16:
        raise _truncated(where, "a format without its fields", len(chunk))
    kind, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == EXTENSIBLE and len(chunk) >= 40 and chunk[26:40] == _GUID_TAIL:
        kind = int.from_bytes(chunk[24:26], "little")
    allowed = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}.get(kind, ())
    if bits not in allowed:
        raise InputError(
            "the WAV file holds samples of a kind that is not read",
            where=where,
            found=f"format {kind:#x}, {bits} bits",
            expected="PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64",
            fix="convert it first, for example with `ffmpeg -i FILE -c:a pcm_s16le out.wav`",
        )
    result = _Format(kind, channels, rate, bits)
    if not 1 <= channels <= _MAX_CHANNELS or not _RATES[0] <= rate <= _RATES[1] or align != result.frame_bytes:
        raise InputError(
            "the format of the WAV file contradicts itself",
            where=where,
            found=f"{channels} channels, {rate} samples per second, {align} bytes for a sample of all channels",
            expected=f"{result.frame_bytes} bytes, {_RATES[0]} to {_RATES[1]} samples per second",
        )
    return result


def _samples(raw: bytes, start: int, length: int, format_: _Format, where: str) -> Audio:
    left = len(raw) - start
    if length == _STREAMED:
        length = left
    if length > left:
        raise _truncated(where, f"samples of {length} bytes", left)
    count = length // format_.frame_bytes
    if not count:
        raise InputError("the WAV file holds no samples", where=where, found="0 samples")
    values = _decode(raw, start, count * format_.channels, format_)
    samples = values.reshape(count, format_.channels).mean(axis=1, dtype=np.float32) if format_.channels > 1 else values
    if not np.isfinite(samples).all():
        raise InputError("the WAV file holds samples that are no numbers", where=where, found="NaN or infinity")
    return Audio(np.ascontiguousarray(samples, np.float32), format_.rate)


def _decode(raw: bytes, start: int, count: int, format_: _Format) -> NDArray[np.float32]:
    """`count` samples as float32; full scale of an integer is 2^(bits - 1)."""
    if format_.kind == FLOAT:
        return np.frombuffer(raw, np.dtype(f"<f{format_.bits // 8}"), count, start).astype(np.float32)
    if format_.bits == 8:
        return _scaled(np.frombuffer(raw, np.uint8, count, start).astype(np.int16) - 128, 8)
    if format_.bits == 24:
        # three bytes as the upper ones of four, so that the sign is where it belongs
        wide = np.zeros((count, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8, 3 * count, start).reshape(count, 3)
        return _scaled(wide.view("<i4").reshape(-1), 32)
    return _scaled(np.frombuffer(raw, np.dtype(f"<i{format_.bits // 8}"), count, start), format_.bits)


def _scaled(values: NDArray[Any], bits: int) -> NDArray[np.float32]:
    scaled = values.astype(np.float32)
    scaled *= np.float32(2.0 ** (1 - bits))
    return scaled
