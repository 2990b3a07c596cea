"""The CPU backend: kernels emitted through llvmlite, run by native worker threads with one native call per program.

Order of reading: `target.py`, `emit.py`, `kernels/linear.py`, `codegen.py`, `threads.py`, `module.py`.
"""
