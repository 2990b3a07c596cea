"""How a model is compiled, apart from what it computes: a dataclass that also loads from TOML.

    precision = "exact"
    fusion = false
    page_size = 64

Next: `flow.py`, which carries a profile to the blocks; `rlx/compiler.py`, which obeys it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from rlx.config import TARGETS
from rlx.core.dtype import DTYPES, DType, bf16, f16, f32
from rlx.errors import ModelNotFoundError, OptionError

_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": ("fast", "exact"),
    "target": TARGETS,
    "kv_cache": ("auto", "f32", "f16", "bf16", "q8_0"),
    "weights": ("auto", "keep", "q8_0"),
}
_BACKENDS = ("cpu", "reference", "null")


@dataclass(frozen=True, slots=True)
class Profile:
    """The choices of a compilation.

    Attributes:
        precision: "fast" (int8 activations for quantised weights), or "exact"
            (float32).
        fusion: fuse ops into fewer steps.
        backend: "cpu", "reference" (the NumPy oracle) or "null" (compiles, runs nothing).
        target: the instruction set, "native" for this host's.
        page_size: positions per page of the KV cache.
        kv_cache: element type of the KV cache; "auto" is f32 with precision "exact", and with "fast" bf16 where the
            target multiplies it, else f16. "q8_0" takes half the memory of f16, and head_dim in blocks of 32.
        weights: "keep" computes with the types that the file has; "q8_0" rounds the float matrices of an encoder to 8
            bits when they are packed; "auto" does so with precision "fast".
    """

    precision: str = "fast"
    fusion: bool = True
    backend: str = "cpu"
    target: str = "native"
    page_size: int = 32
    kv_cache: str = "auto"
    weights: str = "auto"

    def cache_dtype(self, has_bf16_products: bool) -> DType:
        """The element type of the KV cache on a target that has bfloat16 products, or has not."""
        if self.kv_cache != "auto":
            return DTYPES[self.kv_cache]
        if self.precision == "exact":
            return f32
        return bf16 if has_bf16_products else f16

    @property
    def quantises_encoders(self) -> bool:
        """Whether the float matrices of an encoder are rounded to 8 bits."""
        return self.weights == "q8_0" or (self.weights == "auto" and self.precision == "fast")

    def __post_init__(self) -> None:
        for name, choices in (*_CHOICES.items(), ("backend", _BACKENDS)):
            if getattr(self, name) not in choices:
                raise OptionError(
                    f"{name} has a value that is not allowed",
                    found=repr(getattr(self, name)),
                    expected=" or ".join(choices),
                )
        if type(self.fusion) is not bool:
            raise OptionError("fusion is a truth value", found=repr(self.fusion), expected="true or false")
        if type(self.page_size) is not int or not 1 <= self.page_size <= 4096:
            raise OptionError("page_size is a number of positions", found=repr(self.page_size), expected="1 to 4096")

    @staticmethod
    def from_mapping(values: Mapping[str, object], where: str | None = None) -> Profile:
        """A profile from the keys of a parsed file.

        Raises:
            OptionError: a key is unknown, or a value is not allowed.
        """
        known = [field.name for field in fields(Profile)]
        for key in values:
            if key not in known:
                raise OptionError("a profile has no such key", where=where, found=repr(key), expected=", ".join(known))
        return Profile(**values)  # pyright: ignore[reportArgumentType]  # checked by __post_init__

    @staticmethod
    def from_toml(text: str, where: str | None = None) -> Profile:
        """A profile from the text of a TOML file; its keys are the attributes, at the top or under `[profile]`.

        Raises:
            OptionError: the text is not TOML, a key is unknown, or a value is not allowed.
        """
        import tomllib

        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise OptionError("the profile is not TOML", where=where, found=str(error)) from None
        if isinstance(table.get("profile"), dict) and len(table) == 1:
            table = table["profile"]
        return Profile.from_mapping(table, where)

    @staticmethod
    def load(path: str | Path) -> Profile:
        """A profile from a TOML file.

        Raises:
            ModelNotFoundError: the file cannot be read.
            OptionError: see `from_toml`.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelNotFoundError("the profile cannot be read", where=str(path), found=str(error)) from None
        return Profile.from_toml(text, str(path))
