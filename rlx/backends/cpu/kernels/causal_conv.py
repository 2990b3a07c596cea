"""causal_conv and causal_conv_step: some channels of one sequence at a time, its rows in order.

Rows before the first of a call come from the state, which is copied first, so that it can be replaced while rows are
still to be read. The taps of the channels are turned round once, so that a vector holds one tap of 16 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlx.backends.cpu.emit import F32, LANES, VF, Emit, Val
from rlx.backends.cpu.kernels.ragged_rows import SequenceFrame, ragged_rows
from rlx.backends.cpu.kernels.registry import Body, Setting, always, kernel
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.vmath import silu
from rlx.core.backend import KernelPlan
from rlx.core.graph import Node
from rlx.ops.op import static_axis

CHANNELS = 256
"""Channels of a unit: a row of them is 1 KB, and turning their taps round pays for few rows."""


def _plan(node: Node, target: Target) -> KernelPlan:
    weight, rows = node.inputs[1].type, ragged_rows(node, 2)
    channels, taps = (static_axis(weight, axis, "the filters") for axis in (0, 1))
    config: dict[str, Setting] = {
        "channels": channels,
        "taps": taps,
        "activation": str(node.attrs["activation"]),
        **rows.config,
    }
    return KernelPlan("channels", config, rows.sizes, rows.sequences * -(-channels // CHANNELS), {}, rows.in_place)


@kernel("causal_conv", "channels", help="rows in order, a lane for each channel", when=always, plan=_plan)
def build_plain(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, weight, out; sizes rows of a sequence; units are blocks of channels of sequences."""
    _build(body, config)


@kernel("causal_conv_step", "channels", help="rows in order, a lane for each channel", when=always, plan=_plan)
def build_step(body: Body, config: Mapping[str, Setting]) -> None:
    """Buffers: x, weight, state, bounds, positions, slots, out; sizes rows, slots, width of the state."""
    _build(body, config)


@dataclass(frozen=True, slots=True)
class _Columns:
    """The channels `start` to `start + count - 1` of a sequence (i64), in vectors of 16."""

    e: Emit
    start: Val
    count: Val

    def copy(self, source: Val, target: Val) -> None:
        """A row of them, from address to address."""
        e = self.e
        whole = self.count - self.count % LANES
        with e.loop(0, whole, LANES) as c:
            e.store(e.load(source, VF, c), target, c)
        with e.when(whole < self.count):
            mask = e.tail_mask(self.count - whole)
            e.masked_store(e.masked_load(e.at(source, whole, F32), VF, mask), e.at(target, whole, F32), mask)


def _build(body: Body, config: Mapping[str, Setting]) -> None:
    e, frame = body.e, SequenceFrame(body, dict(config))
    channels, taps = int(config["channels"]), int(config["taps"])
    blocks = -(-channels // CHANNELS)
    weight = body.buffer(1)
    turned = e.local(F32, taps * CHANNELS)
    history = e.local(F32, max(1, taps - 1) * CHANNELS)
    with e.loop(0, taps * CHANNELS, LANES) as i:  # lanes beyond the last channel are computed and not stored
        e.store(e.typed(0.0, VF), turned, i)
    with e.loop(body.begin, body.end) as unit:
        sequence, start = frame.sequence(unit // blocks), (unit % blocks) * CHANNELS
        columns = _Columns(e, start, e.minimum(e.like(channels, start) - start, CHANNELS))
        with e.loop(0, columns.count) as c:
            for k in range(taps):
                e.store(e.load(weight, F32, (start + c) * taps + k), turned, c + k * CHANNELS)
        with e.loop(0, (taps - 1) * CHANNELS, LANES) as i:
            e.store(e.typed(0.0, VF), history, i)
        if sequence.state is not None:
            with e.either(sequence.is_new) as (new, old):
                with new:
                    pass
                with old:
                    for k in range(taps - 1):
                        columns.copy(e.at(sequence.state, start + k * channels, F32), e.at(history, k * CHANNELS, F32))
        x = e.at(body.buffer(0), sequence.first * channels + start, F32)
        out = e.at(frame.out, sequence.first * channels + start, F32)
        _filter(e, config, columns, x, out, turned, history, sequence.count)
        if sequence.state is not None:
            with e.when(sequence.count > 0):
                for k in range(taps - 1):
                    source = _past_row(e, config, x, history, sequence.count, k)
                    columns.copy(source, e.at(sequence.state, start + k * channels, F32))


def _past_row(e: Emit, config: Mapping[str, Setting], x: Val, history: Val, row: Val, k: int) -> Val:
    """The address of the row that is `taps - 1 - k` before `row` of this call."""
    past = row - (int(config["taps"]) - 1 - k)
    before = e.at(history, (past + (int(config["taps"]) - 1)) * CHANNELS, F32)
    return e.select(past < 0, before, e.at(x, past * int(config["channels"]), F32))


def _filter(
    e: Emit, config: Mapping[str, Setting], columns: _Columns, x: Val, out: Val, turned: Val, history: Val, rows: Val
) -> None:
    channels, taps = int(config["channels"]), int(config["taps"])
    whole = columns.count - columns.count % LANES
    with e.loop(0, rows) as row:
        sources = [_past_row(e, config, x, history, row, k) for k in range(taps)]

        def value(c: Val, mask: Val | None, sources: list[Val] = sources) -> Val:
            total = e.typed(0.0, VF)
            for k, source in enumerate(sources):
                address = e.at(source, c, F32)
                rows_of = e.load(address, VF) if mask is None else e.masked_load(address, VF, mask)
                tap = e.load(turned, VF, c + k * CHANNELS)
                total = rows_of * tap if k == 0 else e.fma(rows_of, tap, total)
            return silu(e, total) if config["activation"] == "silu" else total

        target = e.at(out, row * channels, F32)
        with e.loop(0, whole, LANES) as c:
            e.store(value(c, None), target, c)
        with e.when(whole < columns.count):
            mask = e.tail_mask(columns.count - whole)
            e.masked_store(value(whole, mask), e.at(target, whole, F32), mask)
