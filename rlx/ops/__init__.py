"""One file per op family, every rule of an op in it. Importing this package fills the registry.

Read `op.py` first.
"""

from rlx.ops import (
    activation,
    attention,
    constant,
    elementwise,
    embedding,
    linear,
    normalization,
    paged_attention,
    reduce,
    rope,
    shape,
    storage,
)

FAMILIES = (
    constant,
    elementwise,
    activation,
    normalization,
    reduce,
    linear,
    embedding,
    rope,
    attention,
    paged_attention,
    shape,
    storage,
)
