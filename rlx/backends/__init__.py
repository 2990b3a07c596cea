"""Where programs run: `cpu/` (machine code), `reference/` (NumPy, the oracle) and `null/` (compiles, runs nothing).

What the compiler asks of one is `rlx/core/backend.py`. No backend imports another.
"""
