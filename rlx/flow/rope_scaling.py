"""Inverse frequencies of RoPE: default, linear, dynamic, yarn, longrope, llama3 and proportional scaling.

In: the parameters as Hugging Face configurations have them (`rope_type`, `rope_theta`, `factor`, ...). Out:
`RopeFrequencies`. The arbiter is transformers (`ROPE_INIT_FUNCTIONS`); the papers are RoFormer (Su et al. 2021),
position interpolation (Chen et al. 2023), YaRN (Peng et al. 2023) and LongRoPE (Ding et al. 2024). Next:
`blocks/rope_tables.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from rlx.errors import UnsupportedModelError

Floats: TypeAlias = NDArray[np.float32]
RopeParameters: TypeAlias = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RopeFrequencies:
    """What makes a RoPE table: `cos(position * inverse[i]) * attention_scaling`, and the same with sin.

    Attributes:
        inverse: float32 `[n_rot / 2]`, radians per position of each pair.
        attention_scaling: factor of both tables (YaRN, LongRoPE).
    """

    inverse: Floats
    attention_scaling: float = 1.0

    def divided_by(self, factors: Floats) -> RopeFrequencies:
        """With each frequency divided by its own factor, as GGUF's `rope_freqs.weight` asks for.

        Raises:
            UnsupportedModelError: there is not one factor for each pair.
        """
        if factors.shape != self.inverse.shape:
            raise UnsupportedModelError(
                "the RoPE factors do not fit the rotated dims",
                found=f"{factors.size} factors",
                expected=f"{self.inverse.size}, one for each pair",
            )
        return RopeFrequencies((self.inverse / factors).astype(np.float32), self.attention_scaling)


@dataclass(frozen=True, slots=True)
class _Request:
    """The parameters of one table, read with the messages of this file."""

    parameters: RopeParameters
    head_dim: int
    max_position: int
    length: int

    def number(self, name: str, default: float | None = None) -> float:
        value = self.parameters.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UnsupportedModelError(
                f"rope parameter {name} has to be a number", where=f"rope_type {self.kind!r}", found=repr(value)
            )
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        value = self.number(name, default)
        if value <= 0:
            raise UnsupportedModelError(
                f"rope parameter {name} has to be positive", where=f"rope_type {self.kind!r}", found=repr(value)
            )
        return value

    def numbers(self, name: str, count: int) -> Floats:
        found = self.parameters.get(name)
        items = cast("Sequence[object]", found) if isinstance(found, Sequence) else ()
        values = [float(item) for item in items if isinstance(item, (int, float))]
        if len(items) != count or len(values) != count or min(values) <= 0:
            raise UnsupportedModelError(
                f"rope parameter {name} has to be {count} positive numbers",
                where=f"rope_type {self.kind!r}",
                found=repr(cast(object, found)),
            )
        return np.array(values, np.float32)

    @property
    def kind(self) -> str:
        return str(self.parameters.get("rope_type") or self.parameters.get("type") or "default")

    @property
    def theta(self) -> float:
        return self.positive("rope_theta", 10000.0)

    @property
    def rotated(self) -> int:
        return int(self.head_dim * self.positive("partial_rotary_factor", 1.0))

    @property
    def original_length(self) -> float:
        return self.positive("original_max_position_embeddings", self.max_position)


def _powers(theta: float, count: int, width: int) -> Floats:
    """theta ** (2i / width) for i < count, each step rounded to float32 as transformers does."""
    exponents = np.arange(0, 2 * count, 2, dtype=np.float32) / np.float32(width)
    return np.power(float(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)


def _default(request: _Request) -> RopeFrequencies:
    rotated = request.rotated
    return RopeFrequencies(np.float32(1) / _powers(request.theta, rotated // 2, rotated))


def _linear(request: _Request) -> RopeFrequencies:
    return RopeFrequencies(_default(request).inverse / np.float32(request.positive("factor")))


def _proportional(request: _Request) -> RopeFrequencies:
    """The head's own pairs, of which a leading part rotates and the rest has angle 0 (Gemma 4)."""
    pairs = request.head_dim // 2
    rotating = int(request.positive("partial_rotary_factor", 1.0) * request.head_dim // 2)
    inverse = np.zeros(pairs, np.float32)
    inverse[:rotating] = np.float32(1) / _powers(request.theta, rotating, request.head_dim)
    return RopeFrequencies(inverse / np.float32(request.positive("factor", 1.0)))


def _dynamic(request: _Request) -> RopeFrequencies:
    """NTK-aware: beyond the trained length the base grows with the length."""
    rotated, factor = request.rotated, request.positive("factor")
    length = max(request.length, request.max_position)
    stretch = factor * length / request.max_position - (factor - 1)
    theta = request.theta * stretch ** (rotated / (rotated - 2))
    return RopeFrequencies(np.float32(1) / _powers(theta, rotated // 2, rotated))


def _yarn(request: _Request) -> RopeFrequencies:
    rotated, theta, original = request.rotated, request.theta, request.original_length
    factor = request.positive("factor", request.max_position / original)
    truncate = request.parameters.get("truncate", True)

    def pair_of(rotations: float) -> float:
        return rotated * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(request.number("beta_fast", 32) or 32), pair_of(request.number("beta_slow", 1) or 1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    ramp = (np.arange(rotated // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low or 0.001)
    kept = np.float32(1) - np.clip(ramp, 0, 1)
    powers = _powers(theta, rotated // 2, rotated)
    inverse = np.float32(1) / (np.float32(factor) * powers) * (1 - kept) + np.float32(1) / powers * kept
    return RopeFrequencies(inverse.astype(np.float32), _yarn_scaling(request, factor))


def _yarn_scaling(request: _Request, factor: float) -> float:
    if request.parameters.get("attention_factor") is not None:
        return request.number("attention_factor")

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = request.number("mscale", 0), request.number("mscale_all_dim", 0)
    return magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)


def _longrope(request: _Request) -> RopeFrequencies:
    rotated, original = request.rotated, request.original_length
    factors = request.numbers("long_factor" if request.length > original else "short_factor", rotated // 2)
    factor = request.positive("factor", request.max_position / original)
    scaling = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    if request.parameters.get("attention_factor") is not None:
        scaling = request.number("attention_factor")
    return RopeFrequencies(np.float32(1) / (factors * _powers(request.theta, rotated // 2, rotated)), scaling)


def _llama3(request: _Request) -> RopeFrequencies:
    """Long wavelengths are divided by the factor, short ones kept, those between blended."""
    factor, original = request.positive("factor"), request.original_length
    low, high = request.positive("low_freq_factor"), request.positive("high_freq_factor")
    inverse = _default(request).inverse
    wavelength = np.float32(2 * math.pi) / inverse
    blend = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1) - blend) * inverse / np.float32(factor) + blend * inverse
    scaled = np.where(wavelength > np.float32(original / low), inverse / np.float32(factor), blended)
    return RopeFrequencies(np.where(wavelength < np.float32(original / high), inverse, scaled).astype(np.float32))


ROPE_TYPES: dict[str, Callable[[_Request], RopeFrequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}


def rope_frequencies(
    parameters: RopeParameters, head_dim: int, max_position_embeddings: int, length: int = 0
) -> RopeFrequencies:
    """The inverse frequencies that a configuration asks for.

    Args:
        parameters: `rope_type` (or `type`), `rope_theta` and what the type needs, named as Hugging Face does.
        head_dim: dims of a head; `n_rot` is `head_dim * partial_rotary_factor`, or all of it for proportional RoPE.
        max_position_embeddings: the configuration's context length.
        length: the longest sequence the table is for; dynamic and longrope depend on it (0: a short one).

    Raises:
        UnsupportedModelError: the type is unknown, or a parameter is missing or no number.
    """
    request = _Request(parameters, head_dim, max_position_embeddings, length)
    make = ROPE_TYPES.get(request.kind)
    if make is None:
        raise UnsupportedModelError(
            "unknown kind of RoPE scaling", found=f"rope_type = {request.kind!r}", expected=", ".join(ROPE_TYPES)
        )
    return make(request)


def context_limit(parameters: RopeParameters, max_position_embeddings: int) -> int:
    """The longest sequence whose frequencies do not depend on its length.

    Dynamic and longrope change all angles once a sequence grows beyond a bound, which would also change what is already
    in a KV cache; within the bound one table is exact.
    """
    request = _Request(parameters, 2, max_position_embeddings, 0)
    return (
        int(min(request.original_length, max_position_embeddings))
        if request.kind == "longrope"
        else max_position_embeddings
    )
