"""LIR: kernels x buffers x schedule. Read `program.py`; then `lower.py`, `plan_memory.py`."""
