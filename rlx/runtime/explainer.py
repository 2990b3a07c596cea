"""Write the page that shows a model on every level.

In: a loaded model, how much to run for the times. Out: an HTML file. What is on it: `rlx/inspect/explain/`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlx.errors import StorageError
from rlx.inspect.explain.data import PageData, Stage, page_data
from rlx.inspect.explain.page import render_page
from rlx.inspect.limits import Limits
from rlx.runtime.loaded_model import LoadedModel
from rlx.runtime.model import Model
from rlx.runtime.profiler import Work, compilation_of, module_of, profile_model
from rlx.runtime.session import Session


def explain_model(
    model: LoadedModel,
    path: Path,
    work: Work | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Write the page; see `LoadedModel.explain`.

    Args:
        model: that no other thread uses.
        path: where to write.
        work: what is run for the times.
        limits, progress: as for `profile_model`.

    Raises:
        StorageError: the file cannot be written. Others as for `profile_model`.
    """
    text = render_page(explained(model, work, limits=limits, progress=progress))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError("the page cannot be written", where=str(path), found=error.strerror) from error


def explained(
    model: LoadedModel,
    work: Work | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[str], None] | None = None,
) -> PageData:
    """What is on the page; arguments and errors as for `explain_model`."""
    compilation, module = compilation_of(model), module_of(model)
    report = profile_model(model, work, compilation=compilation, limits=limits, progress=progress)
    if progress is not None:
        progress("writing down the code of the kernels")
    derived = compilation.stages[0]
    stages = [
        Stage("forward pass", "hir", compilation.forward),
        Stage("derive the program", derived.level, derived.result),
        *(Stage(stage.name, stage.level, stage.result) for stage in compilation.stages[1:]),
    ]
    sizes = {"weights": module.weight_bytes}
    if isinstance(model, Model) and isinstance(model.program, Session):
        sizes["KV cache"] = model.program.cache_bytes
    return page_data(compilation.flow, stages, module.target, report, sizes)
