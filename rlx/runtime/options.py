"""What a request asks for, checked.

In: plain values from a caller, a command line or an HTTP body. Out: a frozen `SamplingOptions`.
Next: `sampler.py`, which applies them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import cast

from rlx.errors import OptionError

_SEED_LIMIT = 2**64  # what fits an unsigned 64-bit integer in any client
_STOP_EXPECTED = "a string or several, none of them empty"
_BIAS_EXPECTED = "a mapping from token id to a number (-inf bans the token)"


def _no_bias() -> Mapping[int, float]:
    return {}


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What one request asks for. Defaults follow llama.cpp; `temperature=0` is greedy.

    Attributes:
        temperature: divides the logits before the draw; 0 takes the most likely token (ties: the lowest id).
        top_k: keep this many most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches this (Holtzman et al. 2019);
            1 is off.
        min_p: keep tokens at least this times as likely as the most likely one (Nguyen et al. 2024); 0 is off.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in the prompt or the
            generated text (as in transformers; Keskar et al. 2019); 1 is off.
        frequency_penalty: subtracted once for each time the token was generated (as in OpenAI's API); 0 is off.
        presence_penalty: subtracted if the token was generated at all (as in OpenAI's API); 0 is off.
        penalty_window: the three penalties look at this many last tokens of prompt and generated text; 0 turns them
            off, -1 looks at all.
        seed: the same seed, prompt and options give the same tokens. None draws one, which the result names.
        logprobs: None for none; n for the log probability of each token and of the n most likely ones.
        stop: generation ends before the first of these strings.
        max_tokens: most tokens to generate; None generates until the context is full.
        ignore_eos: never choose an end-of-sequence token.
        logit_bias: added to the logits of these token ids; `-inf` bans a token.

    Raises:
        OptionError: a value is not allowed; the message names the field.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_window: int = -1
    seed: int | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=_no_bias)

    def __post_init__(self) -> None:
        number, integer = self._number, self._integer
        number("temperature", 0.0, None)
        integer("top_k", 0)
        number("top_p", 0.0, 1.0, low_open=True)
        number("min_p", 0.0, 1.0)
        number("repetition_penalty", 0.0, None, low_open=True)
        number("frequency_penalty", None, None)
        number("presence_penalty", None, None)
        integer("penalty_window", -1)
        integer("seed", 0, _SEED_LIMIT - 1, optional=True)
        integer("logprobs", 0, optional=True)
        integer("max_tokens", 1, optional=True)
        if not isinstance(self.ignore_eos, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise bad_option("ignore_eos", self.ignore_eos, "True or False")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, object], base: SamplingOptions | None = None) -> SamplingOptions:
        """`base` (default: the defaults) with some fields replaced.

        Raises:
            OptionError: a name is not an option (the nearest one is named), or a value is not allowed.
        """
        names = [f.name for f in fields(cls)]
        for name in keywords:
            if name not in names:
                near = get_close_matches(name, names, n=1, cutoff=0.5)
                raise OptionError(
                    "unknown generation option",
                    found=name,
                    expected=", ".join(names),
                    fix=f"did you mean {near[0]}?" if near else "use one of the names above",
                )
        return replace(base or cls(), **keywords)  # type: ignore[arg-type]

    @property
    def is_greedy(self) -> bool:
        """True when no draw is made."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """True when a penalty can change a logit."""
        neutral = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) == (1.0, 0.0, 0.0)
        return self.penalty_window != 0 and not neutral

    def _number(self, name: str, low: float | None, high: float | None, *, low_open: bool = False) -> None:
        value: object = getattr(self, name)
        expected = _range("a finite number", low, high, low_open=low_open)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise bad_option(name, value, expected)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        too_low = low is not None and (number <= low if low_open else number < low)
        if not math.isfinite(number) or too_low or (high is not None and number > high):
            raise bad_option(name, value, expected)
        object.__setattr__(self, name, number)

    def _integer(self, name: str, low: int, high: int | None = None, *, optional: bool = False) -> None:
        value: object = getattr(self, name)
        if value is None and optional:
            return
        expected = _range("a whole number", low, high) + (" or None" if optional else "")
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise bad_option(name, value, expected)
        integer = operator.index(value)
        if integer < low or (high is not None and integer > high):
            raise bad_option(name, value, expected)
        object.__setattr__(self, name, integer)


def _range(kind: str, low: float | None, high: float | None, *, low_open: bool = False) -> str:
    if low is None:
        return kind
    lower = f"above {low:g}" if low_open else f"at least {low:g}"
    return f"{kind}, {lower}" + ("" if high is None else f" and at most {high}")


def bad_option(name: str, value: object, expected: str) -> OptionError:
    """The error for an option with a value that is not allowed."""
    return OptionError(
        f"the option {name} has a value that is not allowed", where=name, found=repr(value), expected=expected
    )


def _stop_strings(value: object) -> tuple[str, ...]:
    items: tuple[object, ...] = ()
    if isinstance(value, str):
        items = (value,)
    elif isinstance(value, Sequence):
        items = tuple(cast("Sequence[object]", value))
    else:
        raise bad_option("stop", value, _STOP_EXPECTED)
    texts = tuple(item for item in items if isinstance(item, str) and item)
    if len(texts) != len(items):
        raise bad_option("stop", items, _STOP_EXPECTED)
    return texts


def _bias(value: object) -> Mapping[int, float]:
    if not isinstance(value, Mapping):
        raise bad_option("logit_bias", value, _BIAS_EXPECTED)
    result: dict[int, float] = {}
    for token, bias in cast("Mapping[object, object]", value).items():
        if isinstance(token, bool) or not isinstance(token, Integral) or not isinstance(bias, Real):
            raise bad_option("logit_bias", (token, bias), _BIAS_EXPECTED)
        number = float(bias)
        if math.isnan(number) or number == math.inf:
            raise bad_option("logit_bias", (token, bias), _BIAS_EXPECTED)
        result[operator.index(token)] = number
    return result
