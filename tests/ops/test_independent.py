"""References of the ops against formulas written another way: plain Python loops, `math`, complex numbers.

The CPU kernels are tested against the references, so what stands here is what makes both right.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import pytest

from rlx.backends.reference.interpreter import evaluate_attrs
from rlx.core.dtype import f32
from rlx.core.storage import decode
from rlx.errors import InputError
from rlx.ops.op import REGISTRY
from tests.ops.sample_inputs import CASES, Array, held_inputs, largest_difference, sample_inputs

# float64 on both sides, sums of at most 200 terms: 1e-12 of the largest value is a thousand roundings
TOLERANCE = 1e-12


def run(op: str, sample: str, seed: int = 0) -> tuple[tuple[Array, ...], dict[str, Any], tuple[Array, ...]]:
    """Operands, attributes and results of the reference on one sample."""
    ((definition, case),) = [(o, s) for o, s in CASES if (o.name, s.name) == (op, sample)]
    attrs = evaluate_attrs(definition.complete(case.attrs), case.dims)
    inputs = held_inputs(definition, case, sample_inputs(definition, case, seed), case.dims)
    return inputs, attrs, definition.reference(inputs, attrs)


def names_of(op: str) -> list[str]:
    return [sample.name for sample in REGISTRY[op].samples()]


def attend(
    query: Array, keys: list[Array], values: list[Array], attrs: dict[str, Any], bias: list[float] | None = None
) -> list[float]:
    """One head of one query over the keys it sees, element by element."""
    cap = attrs["softcap"]
    scores = [attrs["scale"] * sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
    if cap is not None:
        scores = [cap * math.tanh(score / cap) for score in scores]
    if bias is not None:
        scores = [score + extra for score, extra in zip(scores, bias, strict=True)]
    weights = [math.exp(score) for score in scores]
    total = math.fsum(weights)
    return [math.fsum(w * v[d] for w, v in zip(weights, values, strict=True)) / total for d in range(len(values[0]))]


@pytest.mark.parametrize("sample", names_of("attention"))
def test_attention_is_the_loop_over_heads_and_keys(sample: str) -> None:
    inputs, attrs, (result,) = run("attention", sample)
    q, k, v = inputs[:3]
    dim = q.shape[-1] // attrs["num_heads"]
    group = attrs["num_heads"] // attrs["num_kv_heads"]
    expected = np.zeros_like(result)
    for batch in range(q.shape[0]):
        for row in range(q.shape[1]):
            own = row + k.shape[1] - q.shape[1]  # the last query stands at the last key
            seen = list(range(k.shape[1]))
            if attrs["mask"] in ("causal", "sliding"):
                seen = [j for j in seen if j <= own]
            if attrs["mask"] == "sliding":
                seen = seen[-attrs["window"] :]
            if attrs["mask"] == "around":
                seen = [j for j in seen if abs(own - j) < attrs["window"]]
            for head in range(attrs["num_heads"]):
                part = slice(head * dim, (head + 1) * dim)
                shared = slice(head // group * dim, (head // group + 1) * dim)
                keys, values = ([x[batch, j, shared] for j in seen] for x in (k, v))
                bias = None
                if attrs["mask"] == "bias":
                    bias = [float(inputs[3][row, j]) for j in seen]
                elif attrs["mask"] == "relative":
                    last = inputs[3].shape[1] - 1
                    bias = [float(inputs[3][head, min(max(own - j + last // 2, 0), last)]) for j in seen]
                expected[batch, row, part] = attend(q[batch, row, part], keys, values, attrs, bias)
    assert largest_difference(result, expected) <= TOLERANCE


def place_of_key(dtype: str, slot: int, d: int) -> tuple[int, int]:
    """Row and column of a page of keys."""
    if dtype == "q8_0":
        return slot, d
    return (d // 2, 2 * slot + d % 2) if dtype == "bf16" else (d, slot)


def place_of_value(dtype: str, slot: int, d: int) -> tuple[int, int]:
    """Row and column of a page of values."""
    return (slot // 2, 2 * d + slot % 2) if dtype == "bf16" else (slot, d)


@pytest.mark.parametrize("sample", names_of("paged_attention"))
def test_paged_attention_is_the_loop_over_positions(sample: str) -> None:
    (q, k_cache, v_cache, positions, sequences, table), attrs, (result,) = run("paged_attention", sample)
    dtype, page_size, dim = str(attrs["dtype"]), 16, 32
    group = attrs["num_heads"] // attrs["num_kv_heads"]
    expected = np.zeros_like(result)
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        first = 0 if attrs["window"] is None else max(0, position - attrs["window"] + 1)
        for head in range(attrs["num_heads"]):
            keys: list[Array] = []
            values: list[Array] = []
            for past in range(first, position + 1):
                page, slot = table[sequence, past // page_size], past % page_size
                page = page * attrs["page_step"] + attrs["page_offset"]
                key, value = k_cache[page, head // group], v_cache[page, head // group]
                keys.append(np.array([key[place_of_key(dtype, slot, d)] for d in range(dim)]))
                values.append(np.array([value[place_of_value(dtype, slot, d)] for d in range(dim)]))
            part = slice(head * dim, (head + 1) * dim)
            expected[row, part] = attend(q[row, part], keys, values, attrs)
    # half a level of the block's largest value, where rows are rounded
    assert largest_difference(result, expected) <= (TOLERANCE if attrs["result"] == f32 else 1 / 252)


@pytest.mark.parametrize("sample", ["ragged_f32", "shared"])
def test_cache_append_writes_each_token_to_its_page_and_nothing_else(sample: str) -> None:
    (k_cache, v_cache, k, v, positions, sequences, table), attrs, (keys, values) = run("cache_append", sample)
    _, heads, dim, page_size = k_cache.shape
    expected_keys, expected_values = k_cache.copy(), v_cache.copy()
    for row in range(len(positions)):
        page, slot = table[sequences[row], positions[row] // page_size], positions[row] % page_size
        page = page * attrs["page_step"] + attrs["page_offset"]
        for head in range(heads):
            for d in range(dim):
                expected_keys[page, head, d, slot] = k[row, head * dim + d]
                expected_values[page, head, slot, d] = v[row, head * dim + d]
    np.testing.assert_array_equal(keys, expected_keys)
    np.testing.assert_array_equal(values, expected_values)
    assert not np.array_equal(keys, k_cache)


@pytest.mark.parametrize("sample", names_of("rope"))
def test_rope_is_a_complex_product(sample: str) -> None:
    (x, cos, sin), attrs, (result,) = run("rope", sample)
    half, dim = cos.shape[1], x.shape[-1] // attrs["num_heads"]
    expected = x.copy()
    for batch in range(x.shape[0]):
        for row in range(x.shape[1]):
            for head in range(attrs["num_heads"]):
                for i in range(half):
                    first, second = (i, i + half) if attrs["style"] == "half" else (2 * i, 2 * i + 1)
                    first, second = head * dim + first, head * dim + second
                    turned = complex(x[batch, row, first], x[batch, row, second]) * complex(cos[row, i], sin[row, i])
                    expected[batch, row, first], expected[batch, row, second] = turned.real, turned.imag
    assert largest_difference(result, expected) <= TOLERANCE


def test_rope_table_is_the_turned_unit_vector() -> None:
    (index, frequencies), attrs, (cos, sin) = run("rope_table", "long")
    for row, position in enumerate(index):
        for i, frequency in enumerate(frequencies):
            angle = float(np.float32(position) * np.float32(frequency))  # transformers' angles are float32
            turned = attrs["scaling"] * cmath.exp(1j * angle)
            assert abs(complex(cos[row, i], sin[row, i]) - turned) <= TOLERANCE


@pytest.mark.parametrize("sample", ["plain", "plus_one", "per_head", "odd"])
def test_rms_norm_is_the_formula_with_math(sample: str) -> None:
    (x, weight), attrs, (result,) = run("rms_norm", sample)
    width = len(weight)
    for row in range(x.shape[0]):
        for group in range(attrs["groups"]):
            part = [float(value) for value in x[row, group * width : (group + 1) * width]]
            size = math.sqrt(math.fsum(value * value for value in part) / width + attrs["eps"])
            for i, value in enumerate(part):
                factor = float(weight[i]) + (1 if attrs["plus_one"] else 0)
                assert result[row, group * width + i] == pytest.approx(value / size * factor, rel=1e-12, abs=1e-15)


def test_layer_norm_is_the_formula_with_math() -> None:
    (x, weight, bias), attrs, (result,) = run("layer_norm", "bias")
    for row in range(x.shape[0]):
        mean = math.fsum(x[row]) / x.shape[1]
        variance = math.fsum((value - mean) ** 2 for value in x[row]) / x.shape[1]
        for i, value in enumerate(x[row]):
            expected = (value - mean) / math.sqrt(variance + attrs["eps"]) * weight[i] + bias[i]
            assert result[row, i] == pytest.approx(expected, rel=1e-11, abs=1e-13)


def sequences_of(index: list[Array]) -> list[tuple[int, int, int, bool]]:
    """First row, row behind the last, slot, and whether it starts from zeros, of each sequence of a step form."""
    bounds, positions, slots = (part.tolist() for part in index)
    spans = zip(bounds[:-1], bounds[1:], slots, strict=True)
    return [(start, stop, slot, positions[start] == 0) for start, stop, slot in spans if start < stop]


@pytest.mark.parametrize("sample", names_of("causal_conv_step"))
def test_causal_conv_step_is_the_loop_over_rows_and_taps(sample: str) -> None:
    (x, weight, state, *index), attrs, (result, states) = run("causal_conv_step", sample)
    channels, taps = weight.shape
    expected, after = np.zeros_like(result), state.copy()
    for start, stop, slot, is_new in sequences_of(index):
        kept = np.zeros((taps - 1) * channels) if is_new else state[slot, attrs["offset"] :][: (taps - 1) * channels]
        rows = [*kept.reshape(taps - 1, channels), *x[start:stop]]
        for t in range(stop - start):
            for c in range(channels):
                total = math.fsum(weight[c, k] * rows[t + k][c] for k in range(taps))
                expected[start + t, c] = total * sigmoid(total)
        last = np.array(rows[len(rows) - taps + 1 :]).reshape(-1)
        after[slot, attrs["offset"] : attrs["offset"] + last.size] = last
    assert largest_difference(result, expected) <= TOLERANCE
    np.testing.assert_array_equal(states, after)


@pytest.mark.parametrize("sample", ["grouped", "tiled_odd", "plain"])
def test_gated_delta_is_the_loop_over_heads_rows_and_dims(sample: str) -> None:
    (mixed, decay, beta), attrs, (result,) = run("gated_delta", sample)
    key_heads, key_dim, heads = attrs["key_heads"], attrs["key_dim"], decay.shape[-1]
    keys = key_heads * key_dim
    value_dim = (mixed.shape[-1] - 2 * keys) // heads
    expected = np.zeros_like(result)

    def head_of(row: Array, first: int, key_head: int) -> list[float]:
        part = [float(value) for value in row[first + key_head * key_dim :][:key_dim]]
        size = 1.0 if attrs["norm_eps"] is None else math.sqrt(math.fsum(v * v for v in part) + attrs["norm_eps"])
        return [value / size for value in part]

    for batch in range(len(mixed)):
        for head in range(heads):
            key_head = head % key_heads if attrs["tiled"] else head // (heads // key_heads)
            state = [[0.0] * value_dim for _ in range(key_dim)]
            for t, row in enumerate(mixed[batch]):
                q, k = head_of(row, 0, key_head), head_of(row, keys, key_head)
                for d in range(value_dim):
                    column = [float(decay[batch, t, head]) * state[i][d] for i in range(key_dim)]
                    found = math.fsum(a * b for a, b in zip(column, k, strict=True))
                    wanted = float(row[2 * keys + head * value_dim + d])
                    change = float(beta[batch, t, head]) * (wanted - found)
                    for i in range(key_dim):
                        state[i][d] = column[i] + k[i] * change
                    read = math.fsum(state[i][d] * q[i] for i in range(key_dim))
                    expected[batch, t, head * value_dim + d] = attrs["scale"] * read
    assert largest_difference(result, expected) <= TOLERANCE


def test_gated_delta_in_two_calls_is_one() -> None:
    """The state that the first call leaves is what the second one begins with; other slots are left alone."""
    (mixed, decay, beta, state, _, positions, _), attrs, _ = run("gated_delta_step", "tiled_odd")
    rows, slot = len(mixed), np.array([3], np.int32)
    positions = np.arange(rows, dtype=np.int32)

    def call(start: int, stop: int, state: Array) -> tuple[Array, ...]:
        index = (np.array([0, stop - start], np.int32), positions[start:stop], slot)
        parts = (x[start:stop] for x in (mixed, decay, beta))
        return REGISTRY["gated_delta_step"].reference((*parts, state, *index), attrs)

    whole, after = call(0, rows, state)
    first, between = call(0, 5, state)
    second, found = call(5, rows, between)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    np.testing.assert_array_equal(found, after)
    np.testing.assert_array_equal(np.delete(found, 3, axis=0), np.delete(state, 3, axis=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({4: np.array([0, 6, 6, 7, 11], np.int32)}, "bounds do not divide"),
        ({6: np.array([4, 2, 0, 5], np.int32)}, "a slot leads out"),
        ({6: np.array([4, 2, 0, 4], np.int32)}, "two sequences have one slot"),
    ],
)
def test_sequences_that_do_not_fit_their_states_are_refused(change: dict[int, Array], message: str) -> None:
    inputs, attrs, _ = run("gated_delta_step", "ragged")
    given = tuple(change.get(place, array) for place, array in enumerate(inputs))
    with pytest.raises(InputError, match=message):
        REGISTRY["gated_delta_step"].reference(given, attrs)


def test_softmax_is_a_quotient_of_exponentials() -> None:
    (x,), _, (result,) = run("softmax", "rows")
    for row in range(x.shape[0]):
        total = math.fsum(math.exp(value) for value in x[row])
        for i, value in enumerate(x[row]):
            assert result[row, i] == pytest.approx(math.exp(value) / total, rel=1e-12)


@pytest.mark.parametrize("sample", ["f32_13x40x64", "q4_1_q8_13x40x64", "bias_odd"])
def test_linear_is_a_dot_product_with_each_row_of_the_weight(sample: str) -> None:
    inputs, _, (result,) = run("linear", sample)
    x, weight = inputs[:2]
    for row in range(x.shape[0]):
        for out in range(weight.shape[0]):
            expected = math.fsum(a * b for a, b in zip(x[row], weight[out], strict=True))
            expected += float(inputs[2][out]) if len(inputs) == 3 else 0.0
            assert result[row, out] == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_matmul_broadcasts_its_leading_axes() -> None:
    (a, b), _, (result,) = run("matmul", "shared")
    for i, j in np.ndindex(2, 3):
        for row, out in np.ndindex(a.shape[2], 5):
            expected = math.fsum(a[i, j, row, d] * b[d, out] for d in range(8))
            assert result[i, j, row, out] == pytest.approx(expected, rel=1e-11, abs=1e-12)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: float) -> float:
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


SCALARS = {
    "neg": lambda x: -x,
    "abs": abs,
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "rsqrt": lambda x: x**-0.5,
    "tanh": lambda x: 1 - 2 / (math.exp(2 * x) + 1),
    "erf": math.erf,
    "sin": math.sin,
    "cos": math.cos,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_quick": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: x if x > 0 else 0.0,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "maximum": max,
    "minimum": min,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "equal": lambda x, y: x == y,
    "select": lambda c, x, y: x if c else y,
}


def test_every_scalar_op_has_an_independent_formula() -> None:
    from rlx.ops.elementwise import SCALAR_OPS

    assert set(SCALARS) == set(SCALAR_OPS)


@pytest.mark.parametrize("op", SCALARS)
def test_scalar_op_is_the_formula_with_math(op: str) -> None:
    inputs, _, (result,) = run(op, "2d")
    for index in np.ndindex(result.shape):
        expected = SCALARS[op](*(x[index].item() for x in inputs))
        assert result[index].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_equal_is_true_for_equal_values() -> None:
    x = np.array([1.0, 2.0, np.nan])
    (result,) = REGISTRY["equal"].reference((x, np.array([1.0, 3.0, np.nan])), {})
    assert result.tolist() == [True, False, False]


@pytest.mark.parametrize(("op", "sample", "gate"), [("geglu", "rows", gelu_tanh), ("geglu", "erf", gelu)])
def test_geglu_gates_by_gelu(op: str, sample: str, gate: Any) -> None:
    (x, up), _, (result,) = run(op, sample)
    for index in np.ndindex(x.shape):
        assert result[index] == pytest.approx(gate(float(x[index])) * up[index], rel=1e-12, abs=1e-15)


def test_swiglu_gates_by_silu() -> None:
    (x, up), _, (result,) = run("swiglu", "rows")
    for index in np.ndindex(x.shape):
        assert result[index] == pytest.approx(x[index] * sigmoid(float(x[index])) * up[index], rel=1e-12)


def test_soft_cap_bounds_its_operand() -> None:
    (x,), attrs, (result,) = run("soft_cap", "rows")
    assert np.abs(result).max() < attrs["cap"]
    for index in np.ndindex(x.shape):
        assert result[index] == pytest.approx(attrs["cap"] * math.tanh(x[index] / attrs["cap"]), rel=1e-12)


def test_fused_expression_is_the_composition() -> None:
    (x, row), _, (result,) = run("elementwise", "row")
    for i, j in np.ndindex(x.shape):
        assert result[i, j] == pytest.approx(x[i, j] * 2 + row[j], rel=1e-14)


def test_embedding_takes_and_scales_rows() -> None:
    (tokens, table), attrs, (result,) = run("embedding", "f32")
    for row, token in enumerate(tokens):
        np.testing.assert_array_equal(result[row], [value * attrs["scale"] for value in table[token]])


def test_repeat_kv_repeats_whole_heads() -> None:
    (x,), attrs, (result,) = run("repeat_kv", "heads")
    dim = x.shape[-1] // attrs["num_kv_heads"]
    for head in range(attrs["num_kv_heads"] * attrs["repeats"]):
        source = head // attrs["repeats"]
        np.testing.assert_array_equal(result[:, head * dim : (head + 1) * dim], x[:, source * dim : (source + 1) * dim])


def test_moving_ops_move_by_index() -> None:
    (x,), attrs, (moved,) = run("transpose", "heads")
    for index in np.ndindex(moved.shape):
        source = dict(zip(attrs["axes"], index, strict=True))
        assert moved[index] == x[tuple(source[axis] for axis in range(4))]
    (x,), attrs, (part,) = run("slice", "columns")
    for i, j in np.ndindex(part.shape):
        assert part[i, j] == x[i, attrs["start"] + j]
    (a, b), _, (joined,) = run("concat", "columns")
    for i, j in np.ndindex(joined.shape):
        assert joined[i, j] == (a[i, j] if j < a.shape[1] else b[i, j - a.shape[1]])
    (x,), _, (split,) = run("reshape", "split")
    for i, j, k in np.ndindex(split.shape):
        assert split[i, j, k] == x[i, 4 * j + k]
    (x,), _, (spread,) = run("broadcast", "middle")
    for i, j, k in np.ndindex(spread.shape):
        assert spread[i, j, k] == x[i, 0, k]
    (table, indices), _, (rows,) = run("take_rows", "rows")
    for i, j in np.ndindex(rows.shape):
        assert rows[i, j] == table[indices[i], j]
    (x,), _, (last,) = run("last_token", "batch")
    for i, j in np.ndindex(x.shape[0], x.shape[2]):
        assert last[i, 0, j] == x[i, x.shape[1] - 1, j]
    _, _, (count,) = run("iota", "count")
    assert count.tolist() == list(range(9))
    _, _, (positions,) = run("positions", "tokens")
    assert positions.tolist() == [0, 1, 2, 3, 4]


def test_reductions_are_sum_and_max() -> None:
    (x,), _, (total,) = run("reduce_sum", "rows")
    (y,), _, (largest,) = run("reduce_max", "symbolic")
    assert [row[0] for row in total] == pytest.approx([math.fsum(row) for row in x], rel=1e-12, abs=1e-13)
    assert [row[0] for row in largest] == [max(row) for row in y]


def test_casts_round_towards_zero() -> None:
    (x,), _, (result,) = run("cast", "to_int")
    assert [[math.trunc(value) for value in row] for row in x] == result.tolist()
    (x,), _, (result,) = run("cast", "to_float")
    assert result.tolist() == x.tolist()


def test_quantize_rounds_each_block_to_its_own_int8_grid() -> None:
    (x,), _, (result,) = run("quantize", "q8_act")
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], 32):
            block = x[row, start : start + 32].astype(np.float32)
            scale = float(np.abs(block).max()) / 127
            # half a step of the grid, and the float32 rounding of the scale and the quotient
            assert np.abs(result[row, start : start + 32] - block).max() <= scale * (0.5 + 1e-5)
            steps = result[row, start : start + 32] / scale
            np.testing.assert_allclose(steps, np.rint(steps), atol=2e-5)


@pytest.mark.parametrize("sample", names_of("dequantize"))
def test_dequantize_gives_what_the_bytes_mean(sample: str) -> None:
    _, _, (result,) = run("dequantize", sample)
    definition = REGISTRY["dequantize"]
    case = definition.samples()[names_of("dequantize").index(sample)]
    raw = sample_inputs(definition, case)["x0"].reshape(-1).view(np.uint8)
    np.testing.assert_array_equal(decode(case.inputs[0].dtype, raw, result.shape), result)


@pytest.mark.parametrize(
    ("op", "position", "value"),
    [
        ("embedding", 0, 40),
        ("embedding", 0, -1),
        ("take_rows", 1, 11),
        ("take_rows", 1, -1),
        ("paged_attention", 3, 32),
        ("paged_attention", 4, 3),
        ("paged_attention", 5, 6),
        ("cache_append", 4, -1),
        ("cache_append", 5, -1),
        ("cache_append", 6, 6),
    ],
)
def test_an_index_out_of_its_table_is_refused(op: str, position: int, value: int) -> None:
    definition = REGISTRY[op]
    sample = definition.samples()[0]
    inputs = list(held_inputs(definition, sample, sample_inputs(definition, sample), sample.dims))
    inputs[position] = inputs[position].copy()
    inputs[position].flat[0] = value
    with pytest.raises(InputError, match="leads out of the table"):
        definition.reference(tuple(inputs), definition.complete(sample.attrs))


def test_more_queries_than_keys_are_refused_by_a_causal_mask() -> None:
    x = np.ones((1, 3, 4))
    attrs = REGISTRY["attention"].complete({"num_heads": 1, "num_kv_heads": 1, "scale": 1.0})
    with pytest.raises(InputError, match="at least as many keys"):
        REGISTRY["attention"].reference((x, x[:, :2], x[:, :2]), attrs)
