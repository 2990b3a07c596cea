"""The measurements of `rlx bench`.

In: a model reference, works, peers, repetitions. Out: a `Measurement`. The order matters: the first token of this
process comes before all else, then the works, RLX and its peers in turn (`compare.py`), then fresh processes for the
starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rlx.cli.compare import Result, Samples, compare
from rlx.cli.encoder_runner import EncoderRunner
from rlx.cli.loading import LoadFlags, loaded
from rlx.cli.peers.peer import Missing, PeerSetting, System
from rlx.cli.peers.work import Work
from rlx.cli.process import peak_rss_bytes, seconds_since_start
from rlx.cli.runner import RLX, ModelRunner
from rlx.config import OBJECT_CACHE, child_environment
from rlx.errors import ContextLengthError, RlxError, UnsupportedModelError

if TYPE_CHECKING:
    from rlx.cli.peers.find import PeerRequest
    from rlx.runtime.encoder import Encoder
    from rlx.runtime.loaded_model import LoadedModel
    from rlx.runtime.model import Model

FIRST_PROMPT = "The capital of France is"
DEFAULT_CONTEXT = 8192  # what a model is loaded with at most, without a flag


@dataclass(frozen=True, slots=True)
class Start:
    """What it took from the start of a process to its first token, or an encoder's first vector or score.

    Seconds; `cache` is "cold" or "warm".
    """

    first_token_seconds: float
    load_seconds: float
    compile_seconds: float
    cache: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What `rlx bench` was asked to do.

    Attributes:
        works: what is measured.
        encoder_works: what is measured where the model turns out to be an encoder.
        repetitions: how often each.
        starts: fresh processes for the warm start; 0 leaves out the cold one too.
        peers: what to run beside RLX.
        peer_timeout: seconds that one run of a peer may take.
    """

    works: Sequence[Work]
    encoder_works: Sequence[Work]
    repetitions: int
    starts: int
    peers: Sequence[PeerRequest] = ()
    peer_timeout: float = 600.0


@dataclass(slots=True)
class Measurement:
    """Everything `rlx bench` found out. Speeds are in the unit of their work, times in seconds.

    It is filled in as the measuring goes on, so that an interrupt leaves what was measured.
    """

    model: str
    info: Mapping[str, object]
    first: Start
    results: list[Result]
    systems: list[System]
    missing: list[Missing]
    peak_rss_bytes: int = 0
    warm_start: Samples | None = None
    cold_start: Start | None = None
    is_complete: bool = False

    def to_json(self) -> dict[str, object]:
        """Plain values; the medians under the names a script looks for, the samples beside them."""
        document: dict[str, object] = {"model": self.model}
        for result in self.results:
            if (samples := result.samples(RLX)) is not None:
                document[f"{result.work.name}_{_unit_name(result.work)}"] = samples.median
        document |= {
            "load_seconds": self.first.load_seconds,
            "compile_seconds": self.first.compile_seconds,
            "first_token_seconds": self.first.first_token_seconds,
            "cache": self.first.cache,
            "peak_rss_bytes": self.peak_rss_bytes,
            "warm_start_first_token_seconds": self.warm_start and self.warm_start.median,
            "cold_start_first_token_seconds": self.cold_start and self.cold_start.first_token_seconds,
            "cold_start_compile_seconds": self.cold_start and self.cold_start.compile_seconds,
            "warm_start_samples": self.warm_start and self.warm_start.to_json(),
            "works": [self._work_json(result) for result in self.results],
            "peers": [
                *({"name": system.name, "version": system.version} for system in self.systems[1:]),
                *({"name": peer.name, "missing": peer.found, "fix": peer.fix} for peer in self.missing),
            ],
            "info": {key: value for key, value in self.info.items() if isinstance(value, str | int | float | None)},
            "complete": self.is_complete,
        }
        return document

    def _work_json(self, result: Result) -> dict[str, object]:
        systems: dict[str, object] = {}
        for system in self.systems:
            samples, ratios = result.samples(system.name), result.ratios(RLX, system.name)
            systems[system.name] = {
                "speed": samples and samples.to_json(),
                "rlx_ratio": ratios.to_json() if ratios and system.name != RLX else None,
                "problem": result.problems.get(system.name),
            }
        return {**result.work.to_json(), "systems": systems}


def _unit_name(work: Work) -> str:
    return work.unit.replace("/s", "_per_second")


def measure(
    flags: LoadFlags,
    plan: Plan,
    keep: Callable[[Measurement], None],
    progress: Callable[[str], None] | None = None,
) -> Measurement:
    """Measure a model.

    Args:
        flags: what to load, and how.
        plan: what to measure.
        keep: receives the measurement as soon as there is one, before it is complete.
        progress: called with a line of text before each run.

    Raises:
        ContextLengthError: a work does not fit into the context.
        RlxError: whatever loading finds wrong.
    """
    from rlx.runtime.model import Model

    needed = max(
        (work.depth + work.tokens * (plan.repetitions + 1) + 2 for work in plan.works if work.depth), default=0
    )
    if flags.context is None and needed > DEFAULT_CONTEXT:
        flags = replace(flags, context=needed)
    with loaded(flags) as model, ExitStack() as stack:
        if isinstance(model, Model):
            runner, works = ModelRunner(model), plan.works
        else:
            runner, works = EncoderRunner(cast("Encoder", model)), plan.encoder_works
        result = Measurement(model.name, dict(model.info), first_token(model), [], [runner], [])
        keep(result)
        if isinstance(model, Model):
            _check_lengths(works, model)
        if plan.peers:
            _add_peers(result, plan)
        for system in result.systems:
            stack.callback(system.close)
        compare(works, result.systems, plan.repetitions, result.results, progress)
        result.peak_rss_bytes = peak_rss_bytes()
    if plan.starts:
        if progress is not None:
            progress("starting fresh processes")
        warm = tuple(_fresh_start(flags).first_token_seconds for _ in range(plan.starts))
        result.warm_start = Samples(warm)
        result.cold_start = _fresh_start(flags, **{OBJECT_CACHE.name: "off"})
    result.is_complete = True
    return result


def _add_peers(result: Measurement, plan: Plan) -> None:
    from rlx.cli.peers.find import find_peers

    facts = {key: str(result.info.get(key, "")) for key in ("path", "threads", "precision")}
    setting = PeerSetting(Path(facts["path"]), int(facts["threads"] or 1), facts["precision"], plan.peer_timeout)
    systems, result.missing = find_peers(plan.peers, setting)
    result.systems += systems


def _check_lengths(works: Sequence[Work], model: Model) -> None:
    """A length that cannot be measured at all is an error of the command line, not a line in the report."""
    longest = max((work.depth + work.tokens + 1 for work in works if work.name != "encode"), default=0)
    if longest > model.context:
        raise ContextLengthError("the lengths do not fit", found=longest, expected=f"at most {model.context} tokens")


def first_token(model: LoadedModel) -> Start:
    """Generate one token now, or encode one text, and say how long ago this process was started.

    Raises:
        UnsupportedModelError: the model does neither.
    """
    from rlx.runtime.encoder import Encoder
    from rlx.runtime.model import Model

    if isinstance(model, Model):
        model.generate(FIRST_PROMPT, max_tokens=1, temperature=0.0)
    elif not isinstance(model, Encoder):
        raise UnsupportedModelError("only models of texts are measured", where=model.name, found=model.kind)
    elif model.embeds:
        model.embed([FIRST_PROMPT])
    else:
        model.scores([(FIRST_PROMPT, FIRST_PROMPT)])
    seconds = seconds_since_start()
    times = [model.info.get(key) for key in ("load_seconds", "compile_seconds")]
    load_seconds, compile_seconds = (float(t) if isinstance(t, int | float) else 0.0 for t in times)
    return Start(seconds, load_seconds, compile_seconds, str(model.info.get("cache", "unknown")))


def _fresh_start(flags: LoadFlags, **environment: str) -> Start:
    """One token of a fresh process, whose kernels are in the cache by now unless the environment says otherwise."""
    command = [sys.executable, "-m", "rlx.cli.first_token", json.dumps(asdict(flags))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment(**environment))
    if done.returncode:
        raise RlxError("a fresh process did not come to its first token", found=done.stderr.strip())
    return Start(**json.loads(done.stdout))
