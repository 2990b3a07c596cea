"""Text out of the engine: pieces while it runs, and a result with everything at the end.

In: prompt tokens and options. Out: a `TextStream` of valid Unicode pieces, then its `GenerationResult`. A stop string
never shows, not even in part: text that may turn out to be the start of one is held back until it is decided.
Next: `model.py`, which puts tokenizer and chat template in front.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

from rlx.errors import RlxError
from rlx.runtime.engine import Engine
from rlx.runtime.request import Finish, Request, RequestHandle
from rlx.runtime.sampler import SampledToken, SamplingOptions


class DecodeStream(Protocol):
    """Turns tokens into text one by one."""

    def push(self, id: int, /) -> str:
        """The text that became complete with this token; may be empty, never ends inside a character."""
        ...

    def flush(self) -> str:
        """What is left at the end of the text."""
        ...


class Tokenizer(Protocol):
    """What generation needs of a tokenizer (`rlx/io/tokenizer.py`)."""

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a text or a turn."""
        ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Text to token ids."""
        ...

    def stream(self, *, continuation: bool = False) -> DecodeStream:
        """A decoder for one generated text; `continuation` keeps a space at its start: other text stands before it."""
        ...


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went. The first token belongs to the prefill, the others to the decode."""

    prompt_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_tokens: int
    decode_seconds: float
    load_seconds: float | None = None

    @property
    def prefill_tokens_per_second(self) -> float:
        """Speed of reading the prompt; 0 when nothing was measured."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of the tokens after the first one; 0 when there are none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    def to_json(self) -> dict[str, object]:
        """The fields and the two speeds, as plain values."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "prefill_seconds": self.prefill_seconds,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "first_token_seconds": self.first_token_seconds,
            "decode_tokens": self.decode_tokens,
            "decode_seconds": self.decode_seconds,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "load_seconds": self.load_seconds,
        }


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished generation.

    Attributes:
        text: the generated text, without the end-of-sequence token and without the stop string.
        tokens: every token that was generated, an end-of-sequence token and those of a stop string included.
        finish_reason: "stop" (end-of-sequence token or stop string), "length" or "cancelled".
        stop_reason: "eos" or the stop string; "max_tokens" or "context" for "length".
        logprobs: one entry per token, or None when `logprobs` was not asked for.
        timings: where the time went.
        prompt_tokens: the tokens that were continued.
        seed: what makes the same text again.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: Literal["stop", "length", "cancelled"]
    stop_reason: str | None
    logprobs: tuple[SampledToken, ...] | None
    timings: Timings
    prompt_tokens: tuple[int, ...]
    seed: int

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, object]:
        """All of it as values that `json.dumps` takes."""
        logprobs = self.logprobs and [
            {"token": s.token, "logprob": s.logprob, "top": [{"token": t, "logprob": p} for t, p in s.top]}
            for s in self.logprobs
        ]
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "logprobs": logprobs,
            "timings": self.timings.to_json(),
            "prompt_tokens": list(self.prompt_tokens),
            "seed": self.seed,
        }


class StopMatcher:
    """Finds the stop string that is completed first, however the text is cut into pieces."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str | None]:
        """Take more text. Returns (text that may be shown now, the stop string if one was completed)."""
        if not self._stops:
            return piece, None
        text = self._held + piece
        ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if ends:
            end, _, stop = min(ends)  # completed first; of those that end together, the longest
            self._held = ""
            return text[: end - len(stop)], stop
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                self._held = text[start:]
                return text[:start], None
        self._held = ""
        return text, None

    def flush(self) -> str:
        """The text that was held back; it is no stop string after all."""
        text, self._held = self._held, ""
        return text


class TextStream:
    """The pieces of one generated text; iterating runs the engine. At the end `result` has everything.

    `continuation` says that the text goes on after the prompt's, so that a space at its start counts; False for an
    answer that stands for itself. `load_seconds` goes into the timings.

    Closing the stream (also by `with`, by dropping it, or by Ctrl-C while it runs) cancels the request and frees its
    pages.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompt_tokens: Sequence[int],
        options: SamplingOptions,
        *,
        continuation: bool = True,
        load_seconds: float | None = None,
    ) -> None:
        self._handle: RequestHandle | None = None  # `__del__` runs even if `add` below refuses the prompt
        self._engine = engine
        self._options = options
        self._load_seconds = load_seconds
        self._decoder = tokenizer.stream(continuation=continuation)
        self._matcher = StopMatcher(options.stop)
        self._sampled: list[SampledToken] = []
        self._text: list[str] = []
        self._ready: deque[str] = deque()  # pieces that nobody has taken yet
        self._result: GenerationResult | None = None
        request = Request(prompt_tokens, options, eos_ids=tokenizer.eos_ids)
        try:
            self._handle = engine.add(request)
        except BaseException:
            engine.cancel(request.id)  # Ctrl-C may strike when the request is in but the handle is not out
            raise

    @property
    def is_finished(self) -> bool:
        """True once there is a result; pieces may still be waiting to be taken."""
        return self._result is not None

    @property
    def result(self) -> GenerationResult:
        """Everything about the generation.

        Raises:
            RlxError: it is still running.
        """
        if self._result is None:
            raise RlxError("the generation is still running", fix="take the pieces to the end, or close the stream")
        return self._result

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece, never empty.

        Raises:
            RlxError: the model or an option made it impossible to choose a token.
        """
        try:
            while not self._ready and self._result is None:
                self._engine.wait(self._request(), len(self._sampled))
                self.pump()
        except BaseException:
            self.close()
            raise
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def pump(self) -> None:
        """Turn the tokens that are there into pieces, without running the engine.

        Raises:
            RlxError: the request ended with an error.
        """
        handle = self._request()
        while self._result is None and len(self._sampled) < len(handle.sampled):
            sampled = handle.sampled[len(self._sampled)]
            self._sampled.append(sampled)
            if sampled.token not in handle.request.eos_ids:
                self._show(self._decoder.push(sampled.token))
        if self._result is not None or handle.finish is None or len(self._sampled) < len(handle.sampled):
            return
        if handle.finish.error is not None:
            raise handle.finish.error
        self._show(self._decoder.flush())
        if self._result is None:
            self._append(self._matcher.flush())
            self._end(handle.finish)

    def close(self) -> None:
        """Cancel the request if it is running; what was generated so far is in `result`."""
        if self._handle is None or self._result is not None:
            return
        self._engine.cancel(self._handle.request.id)
        self._end(Finish("cancelled"))

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _request(self) -> RequestHandle:
        if self._handle is None:
            raise RlxError("the stream has no request")
        return self._handle

    def _show(self, piece: str) -> None:
        text, stop = self._matcher.push(piece)
        self._append(text)
        if stop is not None:
            self._engine.cancel(self._request().request.id)
            self._end(Finish("stop", stop))

    def _append(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._ready.append(text)

    def _end(self, finish: Finish) -> None:
        handle = self._request()
        stats = handle.stats
        if finish.reason == "error":
            raise RlxError("a generation that failed has no result", found=finish.detail)
        self._result = GenerationResult(
            text="".join(self._text),
            tokens=tuple(sampled.token for sampled in self._sampled),
            finish_reason=finish.reason,
            stop_reason=finish.detail,
            logprobs=None if self._options.logprobs is None else tuple(self._sampled),
            timings=Timings(
                prompt_tokens=stats.prompt_tokens,
                prefill_seconds=stats.prefill_seconds,
                first_token_seconds=stats.first_token_seconds,
                decode_tokens=max(0, len(self._sampled) - 1),
                decode_seconds=stats.decode_seconds,
                load_seconds=self._load_seconds,
            ),
            prompt_tokens=tuple(handle.request.prompt_tokens),
            seed=handle.seed,
        )


def stream(engine: Engine, tokenizer: Tokenizer, prompt_tokens: Sequence[int], options: SamplingOptions) -> TextStream:
    """Queue a request and return its stream of text.

    Raises:
        InputError, ContextLengthError, OptionError: the request is refused, see `Engine.add`.
    """
    return TextStream(engine, tokenizer, prompt_tokens, options)


def run_together(engine: Engine, streams: Sequence[TextStream]) -> list[GenerationResult]:
    """Run several streams of one engine to their ends, in the same steps. If one fails, or on Ctrl-C, all are closed.

    Raises:
        RlxError: the error of the first one that failed.
    """
    try:
        while any(not stream.is_finished for stream in streams):
            engine.step()
            for running in streams:
                running.pump()
    finally:
        for running in streams:
            running.close()
    return [stream.result for stream in streams]
