"""`Work`: one thing that is measured, the same for RLX and for every peer.

In: sizes from the command line. Out: what a system is asked to do, its title in tables, and the unit of its speed.
Next: `peer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rlx.errors import OptionError

NAMES = ("prefill", "decode", "batch", "depth", "encode")


@dataclass(frozen=True, slots=True)
class Work:
    """One measured thing.

    Attributes:
        name: "prefill" reads `tokens` in one go; "decode" generates `tokens` one by one from an almost empty context,
            "batch" does so for `sequences` at once, "depth" after `depth` cached tokens; "encode" embeds `sequences`
            texts of `tokens` each, none of them padded.
        tokens: tokens of each sequence.
        sequences: how many run at once.
        depth: tokens in the cache before the clock starts.
    """

    name: str
    tokens: int
    sequences: int = 1
    depth: int = 0

    @property
    def unit(self) -> str:
        """What a speed counts."""
        return "sequences/s" if self.name == "encode" else "tokens/s"

    @property
    def amount(self) -> int:
        """Units of one run: tokens of all sequences, or sequences."""
        return self.sequences if self.name == "encode" else self.tokens * self.sequences

    @property
    def title(self) -> str:
        """How tables call it."""
        tokens = f"{self.tokens} tokens"
        return {
            "prefill": f"prefill, {tokens}",
            "decode": f"decode, {tokens}",
            "batch": f"decode, {tokens} of {self.sequences} sequences at once",
            "depth": f"decode, {tokens} after {self.depth}",
            "encode": f"encode, {self.sequences} texts of {tokens}",
        }[self.name]

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {**asdict(self), "unit": self.unit}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of the command line that works are made of."""

    prompt_tokens: int = 512
    decode_tokens: int = 128
    batch: int = 8
    depth: int = 0
    texts: int = 32
    text_tokens: int = 128


def works_of(names: Sequence[str], sizes: Sizes) -> list[Work]:
    """The works called `names`, in that order.

    Raises:
        OptionError: a name is unknown, or a size is too small to measure anything.
    """
    flags = {
        "prefill": {"-p": sizes.prompt_tokens},
        "decode": {"-n": sizes.decode_tokens},
        "batch": {"-n": sizes.decode_tokens, "--batch": sizes.batch},
        "depth": {"-n": sizes.decode_tokens, "--depth": sizes.depth},
        "encode": {"--texts": sizes.texts, "--text-tokens": sizes.text_tokens},
    }
    for name in names:
        if name not in flags:
            raise OptionError("there is no such measurement", where="--measure", found=name, expected=", ".join(NAMES))
        for flag, value in flags[name].items():
            if value < 1:
                raise OptionError("there is nothing to measure", where=flag, found=value, expected="at least 1")
    made = {
        "prefill": Work("prefill", sizes.prompt_tokens),
        "decode": Work("decode", sizes.decode_tokens),
        "batch": Work("batch", sizes.decode_tokens, sequences=sizes.batch),
        "depth": Work("depth", sizes.decode_tokens, depth=sizes.depth),
        "encode": Work("encode", sizes.text_tokens, sequences=sizes.texts),
    }
    return [made[name] for name in dict.fromkeys(names)]
