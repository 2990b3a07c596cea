"""A request to continue some tokens, and what became of it.

In: prompt tokens and options. Out: the tokens so far, the end, the times. `engine.py` fills these in.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlx.errors import RlxError
from rlx.runtime.sampler import SampledToken, SamplingOptions

FinishReason = Literal["stop", "length", "cancelled", "error"]


def _new_id() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens to continue. `eos_ids` end the text unless `options.ignore_eos`."""

    prompt_tokens: Sequence[int]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    id: str = field(default_factory=_new_id)
    eos_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a request ended.

    `detail` is "eos" or the stop string for `stop`, "max_tokens" or "context" for `length`; `error` comes with "error".
    """

    reason: FinishReason
    detail: str | None = None
    error: RlxError | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step did for one request: a token (None after an error), and the end, if this was it."""

    request_id: str
    sampled: SampledToken | None
    finish: Finish | None


@dataclass(slots=True)
class RequestStats:
    """Times of one request, in seconds of the engine's clock; None for what has not happened yet."""

    prompt_tokens: int
    added: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @property
    def prefill_seconds(self) -> float:
        """From the first step that worked on the prompt to the first token."""
        return 0.0 if self.scheduled is None or self.first_token is None else self.first_token - self.scheduled

    @property
    def first_token_seconds(self) -> float:
        """From the request's arrival to its first token, waiting included."""
        return 0.0 if self.first_token is None else self.first_token - self.added

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last one."""
        return 0.0 if self.first_token is None or self.last_token is None else self.last_token - self.first_token


@dataclass(slots=True, eq=False)
class RequestHandle:
    """The public side of a request: what was generated so far (`sampled` only ever grows) and how it ended."""

    request: Request
    seed: int
    stats: RequestStats
    sampled: list[SampledToken] = field(default_factory=list[SampledToken])
    finish: Finish | None = None
