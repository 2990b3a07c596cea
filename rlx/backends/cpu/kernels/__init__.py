"""The kernels, one file per op family. Importing this package fills the table in `registry.py`."""

from rlx.backends.cpu.kernels import (
    attention,
    cache_append,
    elementwise,
    embedding,
    linear,
    matmul,
    movement,
    rope,
    rows,
)

FAMILIES = (linear, embedding, rows, elementwise, rope, attention, cache_append, matmul, movement)
