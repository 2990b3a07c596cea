"""The oracle: `run_graph` runs a graph node by node through the NumPy references of its ops. Read `interpreter.py`."""

from rlx.backends.reference.interpreter import Weights, run_graph

__all__ = ["Weights", "run_graph"]
