"""Which keys a query sees. Next: `self_attn_prefill.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlx.errors import FlowError

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx
    from rlx.flow.value import FlowValue

KINDS = ("none", "causal", "sliding", "around", "bias", "relative")
WINDOWED = ("sliding", "around")
OPERANDS = {"bias": "(query, key)", "relative": "(num_heads, columns)"}


@dataclass(frozen=True, slots=True)
class MaskKind:
    """A mask, made by one of the functions below.

    Attributes:
        kind: "none" (every key), "causal", "sliding" (causal, the last `window` keys), "around" (a window on both
            sides), "bias" (an additive mask) or "relative" (every key, with a bias for each head and distance).
        window: for "sliding" and "around": how many keys a query sees on one side, its own included.
        operand: for "bias" and "relative": the name in `ctx.named` of what is added to the scores.
    """

    kind: str = "causal"
    window: int | None = None
    operand: str | None = None

    @staticmethod
    def none() -> MaskKind:
        """Every query sees every key."""
        return MaskKind("none")

    @staticmethod
    def causal() -> MaskKind:
        """A query sees its own key and the ones before; fewer queries than keys stand at the end."""
        return MaskKind("causal")

    @staticmethod
    def sliding(window: int) -> MaskKind:
        """Causal, and only the last `window` keys, the query's own included."""
        return MaskKind("sliding", window=window)

    @staticmethod
    def around(window: int) -> MaskKind:
        """The keys less than `window` away, before and after."""
        return MaskKind("around", window=window)

    @staticmethod
    def relative(operand: str) -> MaskKind:
        """Every key; scores get what `ctx.named[operand]`, `f32[num_heads, columns]`, has for the head and for
        `query - key`, counted from the middle column; what lies beyond either end gets the end's.
        """
        return MaskKind("relative", operand=operand)

    @staticmethod
    def bias(operand: str) -> MaskKind:
        """Scores get the additive mask that `ctx.named[operand]` holds."""
        return MaskKind("bias", operand=operand)

    def resolve(self, ctx: FlowCtx) -> tuple[FlowValue, ...]:
        """The operands that attention takes beside q, k, v: the additive mask, or nothing.

        Raises:
            FlowError: the kind is unknown, or lacks its window or operand.
        """
        where = str(ctx.location)
        if self.kind not in KINDS:
            raise FlowError("unknown mask kind", where=where, found=repr(self.kind), expected=", ".join(KINDS))
        if self.kind in WINDOWED and (type(self.window) is not int or self.window < 1):
            raise FlowError(
                f"the mask kind {self.kind} needs its operand: a window",
                where=where,
                found=f"window = {self.window!r}",
                expected="a positive number of keys, the query's own included",
                fix=f"use MaskKind.{self.kind}(window)",
            )
        if self.kind not in OPERANDS:
            return ()
        if self.operand is None or self.operand not in ctx.named:
            raise FlowError(
                f"the mask kind {self.kind} needs its operand: an additive mask f32 {OPERANDS[self.kind]}",
                where=where,
                found=f"named[{self.operand!r}] is missing" if self.operand is not None else "operand = None",
                expected=f"one of: {', '.join(sorted(ctx.named)) or 'nothing is named yet'}",
                fix=f"add .input('mask', {OPERANDS[self.kind]}, f32) and use MaskKind.{self.kind}('mask')",
            )
        return (ctx.named[self.operand],)
