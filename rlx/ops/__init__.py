"""One file per op family, every rule of an op in it. Importing this package fills the registry.

Read `op.py` first.
"""

from rlx.ops import (
    activation,
    attention,
    causal_conv,
    constant,
    convolution,
    elementwise,
    embedding,
    experts,
    gated_delta,
    linear,
    normalization,
    packed_attention,
    paged_attention,
    patches,
    pooling,
    reduce,
    rope,
    route,
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
    convolution,
    route,
    experts,
    embedding,
    rope,
    attention,
    packed_attention,
    paged_attention,
    causal_conv,
    gated_delta,
    patches,
    pooling,
    shape,
    storage,
)
