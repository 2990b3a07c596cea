"""MIR: primitive and fused tensor ops, legalised for one backend. One pass per file, pure functions Graph -> Graph.

Order: `legalize.py`, `fuse_residual.py`, `fuse_rope.py`, `fuse_elementwise.py`, `quantize_activations.py`,
`round_attention.py`; then `rlx/lir/lower.py`.
"""
