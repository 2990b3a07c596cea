"""What stands at the end of a model of texts: a pooling with what follows it, or a classifier.

In: the choices, as dataclasses. Out: stages `[batch, seq, hidden]` to `[batch, 1, width]`. Encoders (`encoder.py`) and
decoders that embed (`embedder.py`) share them. Next: `encoder_family.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from rlx.flow.blocks.activation import ActivationStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.pooling import NormalizeStage, PoolAllStage, PoolStage
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.stage import BlockStage


@dataclass(frozen=True, slots=True)
class Normalize:
    """Make the vector's length 1."""


@dataclass(frozen=True, slots=True)
class Dense:
    """`activation(linear(x))`.

    Attributes:
        key: of the linear layer, without `.weight`.
        bias: a bias stands beside the weight.
        activation: an op of `rlx/ops/elementwise.py`; None for the linear layer alone.
    """

    key: str
    bias: bool = True
    activation: str | None = None


@dataclass(frozen=True, slots=True)
class PoolHead:
    """One vector for each text.

    Attributes:
        modes: how its tokens become one, of `rlx.ops.pooling.POOLINGS`; the vectors of several lie side by side.
        steps: what is done to the vector then.
    """

    modes: tuple[str, ...] = ("mean",)
    steps: tuple[Normalize | Dense, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """Scores of a text, or of a pair of texts: `out(norm(activation(dense(pool(rows)))))`.

    Attributes:
        labels: how many scores.
        dense, out: the keys of the two linear layers, without `.weight`.
        activation: between them.
        pooling: one of `rlx.ops.pooling.POOLINGS`; most take the first token.
        dense_bias: a bias stands beside the first one's weight.
        norm: the key of a layer norm before `out`, without `.weight`; None for no norm.
        norm_eps, norm_bias: of that norm.
    """

    labels: int
    dense: str
    out: str
    activation: str = "tanh"
    pooling: str = "first"
    dense_bias: bool = True
    norm: str | None = None
    norm_eps: float = 1e-5
    norm_bias: bool = False


Head: TypeAlias = PoolHead | ClassifierHead


def head_stages(head: Head) -> SequenceStage:
    """`[batch, seq, hidden]` to one row for each text."""
    if isinstance(head, PoolHead):
        pool = PoolStage(head.modes[0]) if len(head.modes) == 1 else PoolAllStage(head.modes)
        return SequenceStage(pool, *(stage for step in head.steps for stage in _step_stages(step)))
    norm = [] if head.norm is None else [LayerNormStage(f"{head.norm}.weight", head.norm_eps, head.norm_bias)]
    return SequenceStage(
        PoolStage(head.pooling),
        LinearStage(f"{head.dense}.weight", bias=head.dense_bias),
        ActivationStage(head.activation),
        *norm,
        LinearStage(f"{head.out}.weight", bias=True),
    )


def _step_stages(step: Normalize | Dense) -> tuple[BlockStage, ...]:
    if isinstance(step, Normalize):
        return (NormalizeStage(),)
    linear = LinearStage(f"{step.key}.weight", bias=step.bias)
    return (linear,) if step.activation is None else (linear, ActivationStage(step.activation))


def head_keys(head: Head) -> Iterator[str]:
    """Every key that a head reads from the model's own checkpoint."""
    if isinstance(head, PoolHead):
        return
    parts = [(head.dense, head.dense_bias), (head.out, True)]
    parts += [] if head.norm is None else [(head.norm, head.norm_bias)]
    for part, bias in parts:
        yield f"{part}.weight"
        if bias:
            yield f"{part}.bias"
