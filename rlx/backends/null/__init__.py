"""A backend that compiles and runs nothing: it checks a graph and answers with zeros. Read `null.py`."""

from rlx.backends.null.null import NullBackend

__all__ = ["NullBackend"]
