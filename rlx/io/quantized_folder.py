"""Quantised checkpoints of Hugging Face as plain tensors: FP8, GPTQ and AWQ int4, and the MXFP4 of gpt-oss.

In goes an open folder whose linear weights lie in several tensors each (`qweight`, `qzeros`, `scales`, ...). Out comes
a checkpoint with one tensor for each weight, in a storage format of `core/dtype.py`, put together exactly when it is
asked for. Activations stay what they are: an `input_scale` of the checkpoint is not used. In bits per weight:

    FP8 (E4M3, E5M2)        8, and a scale for a tensor, row or block    e4m3_s, e5m2_s: 9
    GPTQ, AWQ               4, and a half and 4 bits for a group         q4_0 if symmetric: 4.5, else q4_z: 4.75
    GPTQ in act-order       the same                                     f32: 32, since neighbours share no scale
    MXFP4                   4.25                                         mxfp4: 4.25

Sources: the checkpoint formats of AutoGPTQ, AutoAWQ, DeepSeek-V3, compressed-tensors and gpt-oss, as transformers reads
them. How the pieces become blocks is in `repack.py`. Used by `reference.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from rlx.core.dtype import DType, e4m3_s, e5m2_s, f32, mxfp4, q4_0, q4_z
from rlx.errors import FileFormatError, UnsupportedModelError
from rlx.io import repack
from rlx.io.checkpoint import TensorInfo, usable_tensor
from rlx.io.identity import Identity
from rlx.io.safetensors_folder import SafetensorsFolder

Bytes = NDArray[np.uint8]
_BLOCK = 32
_UNUSED = (".input_scale", ".activation_scale", ".input_global_scale")
_FLOAT8: dict[str, DType] = {"f8_e4m3": e4m3_s, "f8_e5m2": e5m2_s}


@dataclass(frozen=True, slots=True)
class JoinedTensor:
    """One weight: its entry, the stored tensors it is made of, and how."""

    info: TensorInfo
    parts: tuple[str, ...]
    build: Callable[[], Bytes]


class QuantizedFolder:
    """A folder whose quantised weights are single tensors; implements `Checkpoint`.

    Attributes:
        path: the folder.
        metadata: the parsed config.json without its `quantization_config`.
        tensors: the weights put together, and the rest as it is.
        file_size: bytes of all shards.
    """

    kind: Literal["safetensors"] = "safetensors"

    def __init__(self, folder: SafetensorsFolder, joined: Mapping[str, JoinedTensor]) -> None:
        self.path, self.file_size, self._folder, self._joined = folder.path, folder.file_size, folder, joined
        self.metadata: Mapping[str, object] = {
            key: value for key, value in folder.metadata.items() if key != "quantization_config"
        }
        used = {part for tensor in joined.values() for part in tensor.parts}
        rest = {name: info for name, info in folder.tensors.items() if name not in used and not name.endswith(_UNUSED)}
        self.tensors: Mapping[str, TensorInfo] = rest | {name: tensor.info for name, tensor in joined.items()}

    def data(self, name: str) -> Bytes:
        """See `Checkpoint.data`; a weight that was put together is a copy.

        Raises:
            FileFormatError: its parts contradict each other.
        """
        usable_tensor(self.tensors, name, self.path)
        return self._joined[name].build() if name in self._joined else self._folder.data(name)

    def release(self, name: str) -> None:
        """See `Checkpoint.release`."""
        parts = self._joined[name].parts if name in self._joined else (name,)
        for part in parts:
            self._folder.release_stored(part)

    def identity(self) -> Identity:
        """See `Checkpoint.identity`."""
        return self._folder.identity()


def join_quantized(folder: SafetensorsFolder) -> SafetensorsFolder | QuantizedFolder:
    """The folder with its quantised weights put together, or as it is if it has none that RLX knows.

    Raises:
        UnsupportedModelError: a setting of a known method asks for something that RLX does not read.
        FileFormatError: the parts of a weight do not fit together.
    """
    config = folder.metadata.get("quantization_config")
    settings = _Settings(folder.path, cast("dict[str, Any]", config) if isinstance(config, dict) else {})
    method = settings.values.get("quant_method")
    if config is None:
        joined = list(_float8(folder, settings))
    elif method in ("gptq", "awq"):
        joined = list(_nibbles(folder, settings, is_gptq=method == "gptq"))
    elif method in ("fp8", "fbgemm_fp8") or (
        method == "compressed-tensors" and settings.values.get("format") == "float-quantized"
    ):
        joined = list(_float8(folder, settings))
    elif method == "mxfp4":
        joined = list(_microscaled(folder))
    else:
        return folder
    if not joined and config is None:
        return folder
    return QuantizedFolder(folder, {tensor.info.name: tensor for tensor in joined})


@dataclass(frozen=True, slots=True)
class _Settings:
    """The `quantization_config`, asked field by field."""

    path: Path
    values: Mapping[str, Any]

    def require(self, key: str, known: tuple[object, ...], default: object) -> Any:
        value = self.values.get(key, default)
        if value not in known or isinstance(value, float):
            raise UnsupportedModelError(
                f"RLX does not read checkpoints with this quantization_config.{key}",
                where=f"{self.path}/config.json",
                found=repr(value)[:80],
                expected=" or ".join(map(repr, known)),
                fix="use another quantisation of the model, or the original",
            )
        return value

    def group_size(self) -> int:
        value = self.values.get("group_size", 128)
        if type(value) is not int or (value != -1 and (value < _BLOCK or value % _BLOCK)):
            raise UnsupportedModelError(
                "RLX does not read checkpoints with this quantization_config.group_size",
                where=f"{self.path}/config.json",
                found=repr(value)[:80],
                expected=f"-1, or a multiple of {_BLOCK}",
            )
        return value


def _damaged(folder: SafetensorsFolder, name: str, what: str, found: object, expected: object) -> FileFormatError:
    return FileFormatError(
        f"{what} of the quantised weight {name!r} cannot be used",
        where=str(folder.path),
        found=found,
        expected=expected,
        fix="the checkpoint is damaged, or made for other software",
    )


def _part(folder: SafetensorsFolder, name: str, shape: tuple[int, ...] | None, *dtypes: str) -> NDArray[Any]:
    """A stored part of a weight, checked, as a NumPy array (8-bit floats as bytes)."""
    info = folder.tensors.get(name)
    if info is None:
        raise _damaged(folder, name, "a part", "no such tensor", "a tensor beside the others of the weight")
    if info.dtype.name not in dtypes or (shape is not None and info.shape != shape):
        expected = f"{' or '.join(dtypes)}{'' if shape is None else list(shape)}"
        raise _damaged(folder, name, "the shape or type", f"{info.dtype}{list(info.shape)}", expected)
    kind = info.dtype.numpy if info.dtype.name not in (*_FLOAT8, "f8_e8m0") else np.dtype(np.uint8)
    return folder.stored(name).view(kind).reshape(info.shape)


# ---- int4: GPTQ and AWQ ----


def _nibbles(folder: SafetensorsFolder, settings: _Settings, *, is_gptq: bool) -> Iterable[JoinedTensor]:
    settings.require("bits", (4,), 4)
    if is_gptq:
        first = 0 if settings.require("checkpoint_format", ("gptq", "gptq_v2"), "gptq") == "gptq_v2" else 1
        symmetric, act_order = settings.values.get("sym") is True, settings.values.get("desc_act") is True
    else:
        settings.require("version", ("gemm", "GEMM"), "gemm")
        settings.require("zero_point", (True,), True)
        first, symmetric, act_order = 0, False, False
    layout = repack.NibbleLayout(is_gptq, first, settings.group_size(), symmetric, act_order)
    for name, info in folder.tensors.items():
        if name.endswith(".qweight"):
            yield _nibble_tensor(folder, name.removesuffix(".qweight"), info, layout)


def _nibble_tensor(folder: SafetensorsFolder, stem: str, info: TensorInfo, layout: repack.NibbleLayout) -> JoinedTensor:
    if len(info.shape) != 2:
        raise _damaged(folder, info.name, "the shape", list(info.shape), "two sizes")
    columns, rows = layout.sizes(info.shape)
    group = layout.group_size if layout.group_size != -1 else columns
    if not rows or not columns or columns % group or columns % _BLOCK or rows % 8:
        raise _damaged(folder, info.name, "the shape", list(info.shape), f"whole groups of {group}, and 8 outputs")
    dtype = f32 if layout.act_order else q4_0 if layout.symmetric else q4_z
    parts = [f"{stem}.{part}" for part in ("qweight", "qzeros", "scales")]
    if f"{stem}.g_idx" in folder.tensors:
        parts.append(f"{stem}.g_idx")

    def build() -> Bytes:
        groups = columns // group
        words = _part(folder, parts[0], info.shape, "i32").view(np.uint32)
        zeros = _part(folder, parts[1], (groups, rows // 8), "i32").view(np.uint32)
        scales = _part(folder, parts[2], (groups, rows), "f16", "bf16", "f32")
        order = _part(folder, parts[3], (columns,), "i32", "i64") if len(parts) == 4 else None
        try:
            return repack.nibbles(layout, words, zeros, scales, order)
        except ValueError as error:
            raise _damaged(folder, stem, "a part", error, "what quantization_config says") from None

    return _joined(folder, f"{stem}.weight", (rows, columns), dtype, parts, build)


# ---- FP8 ----


def _float8(folder: SafetensorsFolder, settings: _Settings) -> Iterable[JoinedTensor]:
    stated = settings.values.get("weight_block_size")
    for name, info in folder.tensors.items():
        if info.dtype.name in _FLOAT8:
            scale = next((f"{name}{end}" for end in ("_scale_inv", "_scale") if f"{name}{end}" in folder.tensors), None)
            yield _float8_tensor(folder, name, info, scale, stated)


def _float8_tensor(
    folder: SafetensorsFolder, name: str, info: TensorInfo, scale: str | None, stated: object
) -> JoinedTensor:
    shape = info.shape
    sizes = (1, 1) if scale is None else _scale_shape(folder, folder.tensors[scale].shape, shape, scale)
    block = _block_of(folder, name, shape, sizes, stated)
    whole = bool(shape) and shape[-1] % _BLOCK == 0 and (sizes[1] == 1 or block[1] % _BLOCK == 0)
    dtype = _FLOAT8[info.dtype.name] if whole and len(shape) == 2 else f32
    parts = [name] if scale is None else [name, scale]

    def build() -> Bytes:
        if 0 in shape:
            return np.zeros(0, np.uint8)
        codes = _part(folder, name, shape, info.dtype.name).reshape(-1, shape[-1] if shape else 1)
        factors: NDArray[Any] = np.ones((1, 1), np.float32)
        if scale is not None:
            factors = _part(folder, scale, None, "f32", "bf16", "f16", "f8_e8m0")
            factors = repack.exponents(factors) if factors.dtype == np.uint8 else factors.astype(np.float32)
        return repack.float8(_FLOAT8[info.dtype.name], dtype, codes, factors.reshape(sizes), block)

    return _joined(folder, name, shape, dtype, parts, build)


def _scale_shape(
    folder: SafetensorsFolder, stored: tuple[int, ...], shape: tuple[int, ...], name: str
) -> tuple[int, int]:
    """Rows and columns of the scales: one, one for each output, or one for each block."""
    if stored in ((), (1,), (1, 1)):
        return 1, 1
    if len(shape) == 2 and stored in ((shape[0],), (shape[0], 1)):
        return shape[0], 1
    if len(shape) == 2 and len(stored) == 2 and all(stored):
        return stored[0], stored[1]
    raise _damaged(folder, name, "the shape", list(stored), f"scales for a weight of shape {list(shape)}")


def _block_of(
    folder: SafetensorsFolder, name: str, shape: tuple[int, ...], sizes: tuple[int, int], stated: object
) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    rows, columns = (shape[0], shape[1]) if len(shape) == 2 else (1, 1)
    block = (max(1, -(-rows // sizes[0])), max(1, -(-columns // sizes[1])))
    if sizes[1] == 1:  # one scale, or one for each output
        return block
    if isinstance(stated, list) and len(cast("list[Any]", stated)) == 2:
        numbers = cast("list[Any]", stated)
        if all(type(number) is int and number > 0 for number in numbers):
            block = (numbers[0], numbers[1])
    if (-(-rows // block[0]), -(-columns // block[1])) != sizes:
        raise _damaged(folder, name, "the number of scales", list(sizes), f"one for each block of {list(block)}")
    return block


# ---- MXFP4 ----


def _microscaled(folder: SafetensorsFolder) -> Iterable[JoinedTensor]:
    for name, info in folder.tensors.items():
        if re.search(r"_blocks$", name) and info.dtype.name == "u8":
            stem = name.removesuffix("_blocks")
            yield _microscaled_tensor(folder, stem, info)


def _microscaled_tensor(folder: SafetensorsFolder, stem: str, info: TensorInfo) -> JoinedTensor:
    if len(info.shape) < 3 or info.shape[-1] != 16:
        raise _damaged(folder, info.name, "the shape", list(info.shape), "blocks of 16 bytes")
    shape = (*info.shape[:-2], info.shape[-2] * _BLOCK)
    parts = [info.name, f"{stem}_scales"]

    def build() -> Bytes:
        return repack.microscaled(
            _part(folder, parts[0], info.shape, "u8"), _part(folder, parts[1], info.shape[:-1], "u8", "f8_e8m0")
        )

    return _joined(folder, stem, shape, mxfp4, parts, build)


def _joined(
    folder: SafetensorsFolder,
    name: str,
    shape: tuple[int, ...],
    dtype: DType,
    parts: Iterable[str],
    build: Callable[[], Bytes],
) -> JoinedTensor:
    names = tuple(parts)
    for part in names:
        if part not in folder.tensors:
            raise _damaged(folder, name, "a part", f"no {part!r}", "a tensor beside the others of the weight")
    if name in folder.tensors and name not in names:
        raise _damaged(folder, name, "the name", f"both {name!r} and {names[0]!r}", "one of them")
    info = TensorInfo(name, shape, dtype, folder.tensors[names[0]].offset, dtype.nbytes(int(np.prod(shape))))
    return JoinedTensor(info, names, build)
