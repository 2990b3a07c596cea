"""llvmlite, bound as `Any` because it comes without types: `ir` builds the text of LLVM IR, `binding()` is LLVM itself.

The binding is loaded when it is first needed: a program that is read from the object cache never builds IR, but links.
Next: `emit.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

ir: Any = import_module("llvmlite.ir")


def binding() -> Any:
    """`llvmlite.binding`."""
    return import_module("llvmlite.binding")


def versions() -> str:
    """The versions of llvmlite and of LLVM, for the key of the object cache."""
    return f"{import_module('llvmlite').__version__} {binding().llvm_version_info}"
