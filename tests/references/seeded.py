"""Tensors that a name and a seed define bit for bit, on any machine and any NumPy version.

In: a tensor's name, its shape, a seed. Out: float32 arrays. The recording scripts (torch) and the tests (no torch)
both build their weights here, so that only configuration, seed and answers are stored. Next: `cases.py`.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Float32Array:
    """Uniform float32 numbers of mean 0 and standard deviation `scale`, a function of the arguments alone.

    The raw words of Philox-4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), keyed by
    SHA-256 of seed and name, are used rather than a NumPy distribution, because only raw words are promised to stay
    the same between NumPy versions. The upper 24 bits of a word give an exact float32 in [-1, 1); one float32
    product follows, so there is one rounding.

    Args:
        name: the tensor's name; another name gives unrelated numbers.
        shape: any shape, filled in C order.
        seed: the seed of the whole set of tensors.
        scale: the standard deviation.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(math.prod(shape))
    centred = (words >> np.uint64(40)).astype(np.int32) - np.int32(1 << 23)
    unit = centred.astype(np.float32) * np.float32(2.0**-23)
    return (unit * np.float32(scale * math.sqrt(3.0))).reshape(shape)


def seeded_weight(name: str, shape: tuple[int, ...], seed: int) -> Float32Array:
    """A weight of a random model whose activations keep a size near one, by the kind its Hugging Face name tells.

    Norm weights lie around 1, biases around 0 (standard deviation 0.1), embeddings have standard deviation 1, and
    linear weights `[out, in]` have 1 / sqrt(in).
    """
    if name.endswith("norm.weight") or (name.endswith(".weight") and len(shape) == 1):
        return np.float32(1.0) + seeded_tensor(name, shape, seed, 0.1)
    if name.endswith(".bias"):
        return seeded_tensor(name, shape, seed, 0.1)
    if name.endswith("embed_tokens.weight"):
        return seeded_tensor(name, shape, seed, 1.0)
    return seeded_tensor(name, shape, seed, 1.0 / math.sqrt(shape[-1] if shape else 1))
