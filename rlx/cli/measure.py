"""The measurements of `rlx bench`.

In: a model reference, lengths, repetitions. Out: a `Measurement`. The order matters: the first token of this process
comes before all else, then prefill and decode in turns (a machine that changes its pace changes it for both), then
fresh processes for the warm start.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rlx.cli.loading import LoadFlags, loaded_model
from rlx.cli.process import peak_rss_bytes, seconds_since_start
from rlx.errors import ContextLengthError, OptionError, RlxError

if TYPE_CHECKING:
    from rlx.runtime.model import Model

FIRST_PROMPT = "The capital of France is"
_SEED = 0  # of the prompt's random tokens: their values do not change the work, but a run should repeat exactly


@dataclass(frozen=True, slots=True)
class Samples:
    """Several measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The smallest one."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest one."""
        return max(self.values)

    def to_json(self) -> dict[str, object]:
        """Median, range and every value."""
        return {"median": self.median, "min": self.least, "max": self.most, "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Start:
    """What it took from the start of a process to its first token. Seconds; `cache` is "cold" or "warm"."""

    first_token_seconds: float
    load_seconds: float
    compile_seconds: float
    cache: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything `rlx bench` found out. Speeds in tokens per second, times in seconds."""

    model: str
    info: Mapping[str, object]
    prompt_tokens: int
    decode_tokens: int
    prefill: Samples
    decode: Samples
    first_token_seconds: float
    load_seconds: float
    compile_seconds: float
    cache: str
    peak_rss_bytes: int
    warm_start: Samples | None

    def to_json(self) -> dict[str, object]:
        """Plain values; the medians under the names a script looks for, the samples beside them."""
        return {
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "decode_tokens": self.decode_tokens,
            "prefill_tokens_per_second": self.prefill.median,
            "decode_tokens_per_second": self.decode.median,
            "load_seconds": self.load_seconds,
            "compile_seconds": self.compile_seconds,
            "first_token_seconds": self.first_token_seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "cache": self.cache,
            "warm_start_first_token_seconds": self.warm_start and self.warm_start.median,
            "samples": {
                "prefill_tokens_per_second": self.prefill.to_json(),
                "decode_tokens_per_second": self.decode.to_json(),
                "warm_start_first_token_seconds": self.warm_start and self.warm_start.to_json(),
            },
            "info": {key: value for key, value in self.info.items() if isinstance(value, str | int | float | None)},
        }


def check_sizes(prompt_tokens: int, decode_tokens: int, repetitions: int, starts: int) -> None:
    """Refuse lengths and counts that measure nothing.

    Raises:
        OptionError: one of them is too small.
    """
    lowest = {"-p": (prompt_tokens, 1), "-n": (decode_tokens, 1), "-r": (repetitions, 1), "--starts": (starts, 0)}
    for name, (value, least) in lowest.items():
        if value < least:
            raise OptionError("there is nothing to measure", where=name, found=value, expected=f"at least {least}")


def measure(
    flags: LoadFlags,
    *,
    prompt_tokens: int,
    decode_tokens: int,
    repetitions: int,
    starts: int,
) -> Measurement:
    """Measure a model.

    Raises:
        ContextLengthError: the lengths do not fit into the context.
        RlxError: whatever loading finds wrong.
    """
    with loaded_model(flags) as model:
        start = first_token(model)
        longest = max(prompt_tokens + 1, decode_tokens + 1)
        if longest > model.context:
            raise ContextLengthError(
                "the lengths do not fit", found=longest, expected=f"at most {model.context} tokens"
            )
        prompt = _random_tokens(model, prompt_tokens)
        prefill: list[float] = []
        decode: list[float] = []
        for _ in range(repetitions + 1):
            prefill.append(prompt_tokens / _run(model, prompt, 1))
            decode.append(decode_tokens / _run(model, prompt[:1], decode_tokens))
        peak, name, info = peak_rss_bytes(), model.name, dict(model.info)
    return Measurement(
        model=name,
        info=info,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        prefill=Samples(tuple(prefill[1:])),  # the first of each touches memory for the first time
        decode=Samples(tuple(decode[1:])),
        first_token_seconds=start.first_token_seconds,
        load_seconds=start.load_seconds,
        compile_seconds=start.compile_seconds,
        cache=start.cache,
        peak_rss_bytes=peak,
        warm_start=_warm_starts(flags, starts),
    )


def first_token(model: Model) -> Start:
    """Generate one token now, and say how long ago this process was started."""
    model.generate(FIRST_PROMPT, max_tokens=1, temperature=0.0)
    seconds = seconds_since_start()
    times = [model.info.get(key) for key in ("load_seconds", "compile_seconds")]
    load_seconds, compile_seconds = (float(t) if isinstance(t, int | float) else 0.0 for t in times)
    return Start(seconds, load_seconds, compile_seconds, str(model.info.get("cache", "unknown")))


def _random_tokens(model: Model, count: int) -> list[int]:
    import numpy as np

    return [int(token) for token in np.random.default_rng(_SEED).integers(0, model.vocab_size, count)]


def _run(model: Model, prompt: list[int], max_tokens: int) -> float:
    """Seconds from a fresh sequence to the last of `max_tokens` greedy tokens: that many steps of the program.

    The prompt is one step (or several, if it is long) with logits for its last row only; each further token is a
    step of one row. With a prompt of one token, all the steps are of that kind.
    """
    from rlx.runtime.request import Request
    from rlx.runtime.sampler import SamplingOptions

    options = SamplingOptions(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    start = time.perf_counter()
    handle = model.engine.add(Request(prompt, options))
    while handle.finish is None:
        model.engine.step()
    seconds = time.perf_counter() - start
    if handle.finish.error is not None:
        raise handle.finish.error
    return seconds


def _warm_starts(flags: LoadFlags, starts: int) -> Samples | None:
    """First-token seconds of fresh processes, whose kernels are in the cache by now."""
    values = [_fresh_start(flags).first_token_seconds for _ in range(starts)]
    return Samples(tuple(values)) if values else None


def _fresh_start(flags: LoadFlags) -> Start:
    command = [sys.executable, "-m", "rlx.cli.first_token", json.dumps(asdict(flags))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RlxError("a fresh process did not come to its first token", found=done.stderr.strip())
    return Start(**json.loads(done.stdout))
