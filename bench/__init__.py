"""Measurements of RLX: `kernels.py`, each kernel beside the limits of the machine; `report.py`, docs/benchmarks.md."""
