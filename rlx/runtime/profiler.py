"""Run a model with time stamps and say where the time went.

In: a loaded model, how much work. Out: a `ProfileReport`. The work is that of `rlx bench`: a prompt of random tokens,
tokens one by one, texts of an encoder; each is done a few times without a trace and with it, in turn, and of either the
quickest counts, which others on the machine disturbed least. Next: `rlx/inspect/timing.py`, which makes the tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu.cache_sizes import data_caches
from rlx.config import settings
from rlx.core.bind import bind_inputs
from rlx.errors import ContextLengthError, OptionError, RlxError, UnsupportedModelError
from rlx.inspect.limits import Limits, measure_limits
from rlx.inspect.roofline import Roofline
from rlx.inspect.steps import kernel_text, step_infos
from rlx.inspect.timing import PREPARING, SAMPLING, SCHEDULING, SizedRun, Span, phase
from rlx.runtime.encoder import Encoder, batches
from rlx.runtime.engine import Engine, Request, TokenEvent
from rlx.runtime.model import Model
from rlx.runtime.recompile import Compilation, recompile
from rlx.runtime.sampler import SamplingOptions
from rlx.runtime.session import Session

if TYPE_CHECKING:
    from rlx.backends.cpu.module import CpuModule
    from rlx.backends.cpu.trace import TracedRun
    from rlx.inspect.profile_report import ProfileReport
    from rlx.runtime.loaded_model import LoadedModel

SEED = 0  # of the random tokens: their values do not change the work, but a run should repeat exactly
LIMIT_BYTES, LIMIT_SECONDS, LIMIT_REPEATS = 192 << 20, 0.002, 40
"""How the limits are measured: short runs, so that some of them are not disturbed by what else runs on the machine."""
Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Work:
    """What is run for the times.

    Attributes:
        prompt_tokens: of the prompt that is read.
        new_tokens: generated one by one.
        depth: tokens that are in the cache before those.
        texts, text_tokens: of one call of an encoder.
        repetitions: times each is run without a trace, and with one.
    """

    prompt_tokens: int = 512
    new_tokens: int = 32
    depth: int = 0
    texts: int = 16
    text_tokens: int = 128
    repetitions: int = 3

    @staticmethod
    def of(given: Mapping[str, int]) -> Work:
        """The work with some sizes given.

        Raises:
            OptionError: a name is unknown, or a size below 1 (`depth` below 0).
        """
        known = [field.name for field in fields(Work)]
        for name, value in given.items():
            if name not in known:
                raise OptionError("unknown size of work", found=name, expected=", ".join(known))
            if value < (name != "depth"):
                raise OptionError(f"{name} is not a number to run", found=value, expected="1 or more")
        return Work(**given)


@dataclass(slots=True)
class _Log:
    """What was noted while the work was done: spans of Python, and what each native run was given."""

    spans: list[Span]
    sizes: list[tuple[dict[str, int], list[tuple[int, int]]]]


class _LoggedStep:
    """A step program that notes when it ran, and with which sizes."""

    def __init__(self, session: Session, log: _Log) -> None:
        self._session, self._log = session, log
        self.vocab_size, self.page_size = session.vocab_size, session.page_size
        self.num_pages, self.max_context = session.num_pages, session.max_context
        self.num_slots = session.num_slots

    def run(
        self,
        tokens: Ints,
        positions: Ints,
        sequences: Ints,
        page_table: Ints,
        logit_rows: Ints,
        slots: Ints | None = None,
    ) -> NDArray[np.float32]:
        """See `StepProgram.run`."""
        begin = time.perf_counter()
        result = self._session.run(tokens, positions, sequences, page_table, logit_rows, slots)
        self._log.spans.append(Span(PREPARING, begin, time.perf_counter()))
        first, counts = np.unique(sequences, return_index=True, return_counts=True)[1:]
        rows = [(int(positions[index]), int(count)) for index, count in zip(first, counts, strict=True)]
        dims = {"T": len(tokens), "S": len(page_table), "P": page_table.shape[1], "R": len(logit_rows)}
        self._log.sizes.append(({**dims, "N": self.num_pages, "C": self.num_slots}, rows))
        return result

    def close(self) -> None:
        """The session is the model's."""


class _LoggedEngine(Engine):
    """An engine that notes when it chose tokens, and when it was at work at all."""

    def __init__(self, step: _LoggedStep, log: _Log) -> None:
        super().__init__(step)
        self._log = log

    def step(self) -> list[TokenEvent]:
        """As for any engine."""
        begin, inner = time.perf_counter(), len(self._log.spans)
        events = super().step()
        seconds = time.perf_counter() - begin - sum(span.seconds for span in self._log.spans[inner:])
        # it lies on both sides of the run; only its length is of use
        self._log.spans.append(Span(SCHEDULING, begin, begin + seconds))
        return events

    def _postprocess(self, chunks: Any, logits: NDArray[np.float32]) -> list[TokenEvent]:
        begin = time.perf_counter()
        events = super()._postprocess(chunks, logits)
        self._log.spans.append(Span(SAMPLING, begin, time.perf_counter()))
        return events


@dataclass(frozen=True, slots=True)
class _Task:
    """A phase to be timed. `run` does the work, notes what it is asked to, and gives when it began and ended."""

    name: str
    unit: str
    amount: int
    run: Callable[[_Log], tuple[float, float]]


def profile_model(
    model: LoadedModel,
    work: Work | None = None,
    *,
    compilation: Compilation | None = None,
    limits: Limits | None = None,
    progress: Callable[[str], None] | None = None,
) -> ProfileReport:
    """Time a model; see `LoadedModel.profile`.

    Args:
        model: that no other thread uses.
        work: how much to run.
        compilation: of the model, where it is known already.
        limits: of the machine, where they are known; else they are measured before and after, which takes some seconds.
        progress: called with a line of text before each part.

    Raises:
        UnsupportedModelError: the model is not run by machine code of RLX, or was not made by `rlx.load`.
        ContextLengthError: the lengths do not fit into the context.
    """
    from rlx.inspect.profile_report import ProfileReport, Recording

    work, module = work or Work(), module_of(model)
    tasks = _tasks(model, work)
    tell = progress or _say_nothing
    mir = (compilation or compilation_of(model)).mir
    program = module.program
    packed = {i: module.held(i).nbytes for i, buffer in enumerate(program.buffers) if buffer.kind == "weight"}
    infos = step_infos(mir, program, packed)
    found = limits
    if limits is None:
        tell("measuring the limits of the machine")
        found = _limits_now(module)
    measured: list[_Measured] = []
    for task in tasks:
        tell(f"timing: {task.name}")
        measured.append(_measured(task, module, work.repetitions))
    if limits is None:
        tell("measuring the limits again")
        found = _limits_now(module).better(found) if found else found
    if found is None:
        raise OptionError("no limits to compare with")
    roofline = Roofline(found, data_caches().get("L3", 0))
    names = [f"k{i} {kernel_text(kernel)}" for i, kernel in enumerate(program.kernels)]
    phases = [
        phase(
            m.task.name, m.task.unit, m.task.amount, m.wall, m.plain, infos, program, m.runs, m.spans, roofline, names
        )
        for m in measured
    ]
    recordings = [Recording(m.task.name, [sized.run for sized in m.runs], m.spans) for m in measured]
    return ProfileReport(model.name, model.info, found, phases, infos, recordings)


def _say_nothing(text: str) -> None:
    """Nobody listens."""


def _limits_now(module: CpuModule) -> Limits:
    return measure_limits(
        module.target, module.threads, dram_bytes=LIMIT_BYTES, run_seconds=LIMIT_SECONDS, repeats=LIMIT_REPEATS
    )


def compilation_of(model: LoadedModel) -> Compilation:
    """The compilation of a loaded model, done again.

    Raises:
        UnsupportedModelError: the model was not made by `rlx.load`, or its file has changed.
    """
    module = module_of(model)
    if model.origin is None:
        raise UnsupportedModelError("nobody knows where this model came from", where=model.name, fix="use rlx.load")
    return recompile(model.origin, module.program)


def _no_program(model: LoadedModel) -> UnsupportedModelError:
    return UnsupportedModelError(
        "only language models and encoders of texts that run on the cpu backend can be looked into",
        where=model.name,
        found=model.kind,
    )


def module_of(model: LoadedModel) -> CpuModule:
    """The loaded program of a model.

    Raises:
        UnsupportedModelError: the model runs something else.
    """
    if isinstance(model, Encoder):
        return model.executable.module
    if isinstance(model, Model) and isinstance(model.program, Session):
        return model.program.module
    raise _no_program(model)


@dataclass(frozen=True, slots=True)
class _Measured:
    """The quickest of the traced runs of a task: when, what, and the seconds of the quickest one without a trace."""

    task: _Task
    wall: tuple[float, float]
    plain: float
    runs: Sequence[SizedRun]
    spans: Sequence[Span]


def _measured(task: _Task, module: CpuModule, repetitions: int) -> _Measured:
    """Do the work without and with a trace in turn."""
    cache = settings().cache_dir if settings().object_cache else None
    plain: list[float] = []
    traced: list[tuple[tuple[float, float], _Log, list[TracedRun]]] = []
    task.run(_Log([], []))
    for _ in range(repetitions):
        begin, end = task.run(_Log([], []))
        plain.append(end - begin)
        with module.traced(cache) as trace:
            task.run(_Log([], []))  # the threads of the trace come
            log = _Log([], [])
            trace.clear()
            wall = task.run(log)
            traced.append((wall, log, trace.runs))
    wall, log, runs = min(traced, key=lambda found: found[0][1] - found[0][0])
    inside = [
        SizedRun(run, *sizes) for run, sizes in zip(runs, log.sizes, strict=True) if wall[0] <= run.begin <= wall[1]
    ]
    spans = [span for span in log.spans if wall[0] <= span.begin <= wall[1]]
    return _Measured(task, wall, min(plain), inside, spans)


def _tasks(model: LoadedModel, work: Work) -> list[_Task]:
    if isinstance(model, Encoder):
        return [_Task("encode", "texts", work.texts, lambda log: _encode(model, work, log))]
    if not isinstance(model, Model) or not isinstance(model.program, Session):
        raise _no_program(model)
    session, longest = model.program, max(work.prompt_tokens + 1, max(1, work.depth) + work.new_tokens + 1)
    if longest > model.context:
        raise ContextLengthError("the lengths do not fit", found=longest, expected=f"at most {model.context} tokens")
    if model.engine.num_requests:
        raise RlxError("the model is generating", where=model.name, fix="profile it when it is done")
    prompt, depth = work.prompt_tokens, max(1, work.depth)
    return [
        _Task("prefill", "tokens", prompt, lambda log: _generate(session, log, prompt, 1, from_first=False)),
        _Task(
            "decode",
            "tokens",
            work.new_tokens,
            lambda log: _generate(session, log, depth, work.new_tokens + 1, from_first=True),
        ),
    ]


def _generate(session: Session, log: _Log, prompt: int, tokens: int, *, from_first: bool) -> tuple[float, float]:
    """Continue a random prompt greedily; gives when the work began, or had its first token, and when it ended."""
    engine = _LoggedEngine(_LoggedStep(session, log), log)
    options = SamplingOptions(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    ids = [int(token) for token in np.random.default_rng(SEED).integers(0, session.vocab_size, prompt)]
    handle = engine.add(Request(ids, options))
    while from_first and not handle.sampled and handle.finish is None:
        engine.step()
    begin = time.perf_counter()
    while handle.finish is None:
        engine.step()
    end = time.perf_counter()
    if handle.finish.error is not None:
        raise handle.finish.error
    return begin, end


def _encode(encoder: Encoder, work: Work, log: _Log) -> tuple[float, float]:
    """Run an encoder over random texts of one length."""
    length = min(work.text_tokens, encoder.max_tokens)
    drawn = np.random.default_rng(SEED).integers(0, encoder.vocab_size, (work.texts, length))
    texts = [[int(token) for token in row] for row in drawn]
    begin = time.perf_counter()
    encoder.run_tokens(texts)
    end = time.perf_counter()
    for batch in batches([length] * work.texts):
        shapes = {"tokens": len(batch) * length, "bounds": len(batch) + 1}
        log.sizes.append((_packed_dims(encoder, shapes), [(0, length)] * len(batch)))
    log.spans.append(Span(PREPARING, begin, end))
    return begin, end


def _packed_dims(encoder: Encoder, lengths: Mapping[str, int]) -> dict[str, int]:
    """The value of every symbol of a packed program."""
    graph = encoder.executable.graph
    arrays = {name: np.zeros(lengths["bounds" if name == "bounds" else "tokens"], np.int32) for name, _ in graph.inputs}
    return dict(bind_inputs(graph.inputs, arrays))
