"""The kernels, one file per op family. Importing this package fills the table in `registry.py`."""

from rlx.backends.cpu.kernels import (
    attention,
    cache_append,
    causal_conv,
    elementwise,
    embedding,
    gated_delta,
    layer_norm,
    linear,
    linear_float,
    matmul,
    movement,
    packed_attention,
    patches,
    pooling,
    rope,
    rows,
)

FAMILIES = (
    linear,
    linear_float,
    embedding,
    rows,
    layer_norm,
    elementwise,
    rope,
    attention,
    cache_append,
    packed_attention,
    causal_conv,
    gated_delta,
    patches,
    pooling,
    matmul,
    movement,
)
