"""Self-attention without its output projection: projections, RoPE, grouped-query attention.

In: activations `[..., seq, hidden]` and a RoPE pair from the side state. Out: `[..., seq, num_heads * head_dim]`. What
it means is the contract in docs/architecture.md; the pieces here also make up `self_attention.py`, which is next.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rlx.errors import FlowError, ShapeError
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.rope_tables import fit_rows, sequence_axis

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx, Operand
    from rlx.flow.value import FlowValue

ROPE_STYLES = ("half", "interleaved")


@dataclass(frozen=True, slots=True)
class SelfAttnPrefillSpec:
    """What a self-attention computes.

    Attributes:
        q_key, k_key, v_key: weights `[out, in]`; with `k_eq_v` the v key is never read.
        num_heads, head_dim, num_kv_heads: query head h reads KV head `h // (num_heads / num_kv_heads)`.
        n_rot: leading dims of each head that are rotated, even; 0 rotates nothing and needs no table.
        rope_table: the name of the RoPE pair, None for the default one.
        k_eq_v: the values are the K projection before RoPE.
        mask: which keys a query sees.
        score_scale: factor of the scores; None is `head_dim ** -0.5`.
        attn_logit_softcap: bound c of the scores, `c * tanh(s / c)`; None or <= 0 is off.
        rope_style: "half" pairs i with i + n_rot/2, "interleaved" 2i with 2i + 1.
    """

    q_key: str
    k_key: str
    v_key: str
    num_heads: int
    head_dim: int
    num_kv_heads: int
    n_rot: int
    rope_table: str | None = None
    k_eq_v: bool = False
    mask: MaskKind = field(default_factory=MaskKind.causal)
    score_scale: float | None = None
    attn_logit_softcap: float | None = None
    rope_style: str = "half"

    @staticmethod
    def hf_layer(prefix: str, num_heads: int, head_dim: int, num_kv_heads: int) -> SelfAttnPrefillSpec:
        """Causal attention with the weight names of Hugging Face under `prefix`, all dims of a head rotated."""
        q_key, k_key, v_key = (f"{prefix}.self_attn.{letter}_proj.weight" for letter in "qkv")
        return SelfAttnPrefillSpec(q_key, k_key, v_key, num_heads, head_dim, num_kv_heads, n_rot=head_dim)

    def with_n_rot(self, n_rot: int) -> SelfAttnPrefillSpec:
        """A copy that rotates the first `n_rot` dims of each head."""
        return replace(self, n_rot=n_rot)

    def with_rope_table(self, rope_table: str | None) -> SelfAttnPrefillSpec:
        """A copy that uses the named RoPE pair, or the default one."""
        return replace(self, rope_table=rope_table)

    def with_k_eq_v(self, k_eq_v: bool = True) -> SelfAttnPrefillSpec:
        """A copy whose values are its keys before RoPE, or not."""
        return replace(self, k_eq_v=k_eq_v)

    def with_mask(self, mask: MaskKind) -> SelfAttnPrefillSpec:
        """A copy with another mask."""
        return replace(self, mask=mask)

    def with_rope_style(self, rope_style: str) -> SelfAttnPrefillSpec:
        """A copy with another pairing of the rotated dims."""
        return replace(self, rope_style=rope_style)

    def check(self, ctx: FlowCtx) -> None:
        """Refuse sizes that have no meaning.

        Raises:
            FlowError: heads not divisible by KV heads, no KV heads, `n_rot` odd or beyond `head_dim`, unknown style.
        """
        problem: tuple[str, str, str] | None = None
        if self.num_heads < 1 or self.head_dim < 1:
            problem = ("attention needs heads", f"{self.num_heads} heads of {self.head_dim} dims", "at least 1 of each")
        elif self.num_kv_heads < 1:
            problem = ("attention needs KV heads", f"num_kv_heads = {self.num_kv_heads}", "at least 1")
        elif self.num_heads % self.num_kv_heads:
            heads = f"{self.num_heads} heads, {self.num_kv_heads} KV heads"
            problem = ("the heads are not divisible by the KV heads", heads, "num_heads a multiple of num_kv_heads")
        elif self.n_rot % 2 or self.n_rot < 0:
            problem = ("RoPE rotates pairs, so n_rot has to be even", f"n_rot = {self.n_rot}", "an even number")
        elif self.n_rot > self.head_dim:
            found = f"n_rot = {self.n_rot}, head_dim = {self.head_dim}"
            problem = ("n_rot is larger than head_dim", found, f"n_rot <= {self.head_dim}")
        elif self.rope_style not in ROPE_STYLES:
            problem = ("unknown RoPE style", repr(self.rope_style), " or ".join(ROPE_STYLES))
        if problem is not None:
            what, found, expected = problem
            fix = "correct the SelfAttnPrefillSpec"
            raise FlowError(what, where=str(ctx.location), found=found, expected=expected, fix=fix)


@dataclass(frozen=True, slots=True)
class RopePair:
    """cos and sin, `f32[seq, n_rot / 2]`."""

    cos: FlowValue
    sin: FlowValue


def resolve_rope(ctx: FlowCtx, spec: SelfAttnPrefillSpec, x: FlowValue) -> RopePair | None:
    """The RoPE pair that the spec asks for, cut to its `n_rot`; None if nothing is rotated. Touches no weight.

    Raises:
        FlowError: the table is not there; the message names it, its slot, and the stage to add.
        ShapeError: it has fewer rows than the sequence, or fewer columns than rotated pairs.
    """
    if spec.n_rot == 0:
        return None
    cos, sin = _find_table(ctx, spec.rope_table, "cos"), _find_table(ctx, spec.rope_table, "sin")
    return RopePair(_fitted(ctx, spec, x, cos), _fitted(ctx, spec, x, sin))


def _find_table(ctx: FlowCtx, name: str | None, half: str) -> FlowValue:
    table = (ctx.rope_cos if half == "cos" else ctx.rope_sin) if name is None else ctx.named.get(f"{name}_{half}")
    if table is not None:
        return table
    slot = f"rope_{half}" if name is None else f'named["{name}_{half}"]'
    stage = "RopeTablesStage(...)" if name is None else f'NamedRopeTablesStage("{name}", ...)'
    call = ".rope_tables(...)" if name is None else f'.named_rope_tables("{name}", ...)'
    raise FlowError(
        "the default RoPE table is missing" if name is None else f'the RoPE table "{name}" is missing',
        where=str(ctx.location),
        found=f"nothing in {slot}",
        fix=f"add {stage} earlier in the flow: {call}",
    )


def _fitted(ctx: FlowCtx, spec: SelfAttnPrefillSpec, x: FlowValue, table: FlowValue) -> FlowValue:
    """The table with one row for each token of x and one column for each rotated pair."""
    pairs = spec.n_rot // 2
    if table.type.rank != 2 or table.width < pairs:
        raise ShapeError(
            "the RoPE table has fewer columns than rotated pairs",
            where=str(ctx.location),
            found=str(table.type),
            expected=f"[rows, {pairs}] for n_rot = {spec.n_rot}",
        )
    table = fit_rows(ctx, table, sequence_axis(x))
    return table if table.width == pairs else ctx.op("slice", table, axis=1, start=0, stop=pairs)


@dataclass(frozen=True, slots=True)
class QkvWeights:
    """The projections, read as `[in, out]`; v is None with `k_eq_v`."""

    q: Operand
    k: Operand
    v: Operand | None


def load_qkv(ctx: FlowCtx, spec: SelfAttnPrefillSpec, hidden: int) -> QkvWeights:
    """Load the projections; with `k_eq_v` the v key is not read."""
    q_shape, kv_shape = (spec.num_heads * spec.head_dim, hidden), (spec.num_kv_heads * spec.head_dim, hidden)
    q = ctx.load_param(spec.q_key, transpose=True, shape=q_shape)
    k = ctx.load_param(spec.k_key, transpose=True, shape=kv_shape)
    return QkvWeights(q, k, None if spec.k_eq_v else ctx.load_param(spec.v_key, transpose=True, shape=kv_shape))


def rotate(ctx: FlowCtx, x: FlowValue, num_heads: int, pair: RopePair | None, style: str) -> FlowValue:
    """RoPE per head of `[..., seq, num_heads * head_dim]`; the identity without a pair."""
    return x if pair is None else ctx.op("rope", x, pair.cos, pair.sin, num_heads=num_heads, style=style)


def attend(ctx: FlowCtx, spec: SelfAttnPrefillSpec, q: FlowValue, k: FlowValue, v: FlowValue) -> FlowValue:
    """Grouped-query attention: scale, soft cap, mask, softmax; gives `[..., seq, num_heads * head_dim]`."""
    cap = spec.attn_logit_softcap
    return ctx.op(
        "attention",
        q,
        k,
        v,
        *spec.mask.resolve(ctx),
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        scale=spec.head_dim**-0.5 if spec.score_scale is None else float(spec.score_scale),
        softcap=float(cap) if cap is not None and cap > 0 else None,
        mask=spec.mask.kind,
        window=spec.mask.window,
    )


@dataclass(frozen=True, slots=True)
class SelfAttnPrefillStage:
    """Self-attention of a whole sequence, as its spec says, without an output projection."""

    spec: SelfAttnPrefillSpec
    path: str = "self_attn"

    def emit(self, ctx: FlowCtx, input: FlowValue) -> FlowValue:
        """`[..., seq, hidden]` to `[..., seq, num_heads * head_dim]`."""
        spec = self.spec
        spec.check(ctx)
        pair = resolve_rope(ctx, spec, input)
        weights = load_qkv(ctx, spec, input.width)
        q = ctx.matmul(input, weights.q)
        k = ctx.matmul(input, weights.k)
        v = k if weights.v is None else ctx.matmul(input, weights.v)
        q = rotate(ctx, q, spec.num_heads, pair, spec.rope_style)
        k = rotate(ctx, k, spec.num_kv_heads, pair, spec.rope_style)
        return attend(ctx, spec, q, k, v)
