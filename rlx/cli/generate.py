"""`rlx generate`: continue a prompt.

In: a prompt from the command line, a file or stdin. Out: only the generated text on stdout, piece by piece (or one JSON
document); what it took on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rlx.cli import options as flags
from rlx.cli.declare import argument, option
from rlx.cli.output import use_utf8, write_json, write_text
from rlx.cli.reporting import INTERRUPTED, remark
from rlx.cli.units import seconds_text
from rlx.errors import OptionError

if TYPE_CHECKING:
    from rlx.runtime.generate import GenerationResult, TextStream, Timings
    from rlx.runtime.model import Model

DEFAULT_MAX_TOKENS = 128


def generate_command(
    prompt: Annotated[str | None, argument(help="The text to continue.", show_default=False)] = None,
    model: flags.ModelOption = None,
    file: Annotated[
        str | None,
        option("--file", "-f", help="Read the prompt from a file, - for stdin; one new line at its end is dropped."),
    ] = None,
    max_tokens: Annotated[int, option("--max-tokens", "-n", help="Most tokens to generate.")] = DEFAULT_MAX_TOKENS,
    temperature: flags.TemperatureOption = 0.0,
    top_k: flags.TopKOption = None,
    top_p: flags.TopPOption = None,
    min_p: flags.MinPOption = None,
    repetition_penalty: flags.RepetitionOption = None,
    frequency_penalty: flags.FrequencyOption = None,
    presence_penalty: flags.PresenceOption = None,
    penalty_window: flags.PenaltyWindowOption = None,
    seed: flags.SeedOption = None,
    stop: flags.StopOption = None,
    logprobs: Annotated[
        int | None,
        option(help="Tell the log probability of each token and of the N most likely ones.", metavar="N"),
    ] = None,
    ignore_eos: flags.IgnoreEosOption = False,
    logit_bias: flags.LogitBiasOption = None,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    context: flags.ContextOption = None,
    kv_cache: flags.KvCacheOption = None,
    profile: flags.ProfileOption = None,
    json_output: flags.JsonOption = False,
    quiet: Annotated[bool, option("--quiet", "-q", help="Leave out the summary on stderr.")] = False,
) -> None:
    """Continue a prompt; the text streams to stdout.

    Takes the most likely token each time unless --temperature is given, so the same prompt gives the same text.

    Example: rlx generate "The capital of France is" -n 32

    Example: rlx generate "Once upon a time" --temperature 0.8 --seed 7 --json
    """
    from rlx.cli.loading import LoadFlags, loaded_model

    text = _prompt(prompt, file)
    chosen = flags.generation_options(
        stop=stop,
        logit_bias=logit_bias,
        ignore_eos=ignore_eos,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        penalty_window=penalty_window,
        seed=seed,
        logprobs=logprobs,
    )
    use_utf8()
    with loaded_model(LoadFlags(model, precision, threads, target, context, kv_cache, profile)) as loaded:
        with loaded.stream(text, **chosen) as stream:
            result = follow(stream, echo=not json_output)
        if json_output:
            write_json({"model": loaded.name, "prompt": text, **result.to_json()})
        elif result.logprobs is not None:
            _tell_logprobs(loaded, result)
        if not quiet:
            remark(summary(result) + (f" | seed {result.seed}" if temperature else ""))
    if result.finish_reason == "cancelled":
        raise SystemExit(INTERRUPTED)


def _prompt(prompt: str | None, file: str | None) -> str:
    """The text to continue.

    Raises:
        OptionError: there is none, or two, or the file cannot be read.
    """
    if (prompt is None) == (file is None):
        raise OptionError(
            "a prompt is needed" if prompt is None else "two prompts were given",
            expected="a prompt as the argument, or --file FILE",
            fix='for example: rlx generate "The capital of France is"',
        )
    if prompt is not None:
        return checked_text(prompt)
    return _read_prompt(file or "-")


def checked_text(text: str) -> str:
    """The text itself, unless the command line held bytes that are not UTF-8.

    Raises:
        OptionError: it did.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError("the text is not UTF-8", found=str(error), fix="convert it to UTF-8") from None
    return text


def _read_prompt(file: str) -> str:
    where = "stdin" if file == "-" else file
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = raw.decode()
    except (OSError, AttributeError) as error:  # a closed stdin is None
        raise OptionError("the prompt cannot be read", where=where, found=str(error)) from None
    except UnicodeDecodeError as error:
        raise OptionError("the prompt is not UTF-8", where=where, found=str(error), fix="convert it to UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def follow(stream: TextStream, *, echo: bool) -> GenerationResult:
    """Take the pieces of a stream to its end, or to Ctrl-C: then the result says `cancelled` and has what there was.

    Args:
        stream: a generation.
        echo: write the pieces to stdout, and a new line after the last one.
    """
    last = ""
    try:
        for piece in stream:
            last = piece
            if echo:
                write_text(piece)
    except KeyboardInterrupt:
        stream.close()
    if echo and not last.endswith("\n"):
        write_text("\n")
    return stream.result


def summary(result: GenerationResult) -> str:
    """One line about what a generation took and why it ended."""
    timings = result.timings
    parts = [f"prompt {timings.prompt_tokens} tokens in {seconds_text(timings.prefill_seconds)}"]
    parts.append(f"generated {len(result.tokens)} tokens{_decode_speed(timings)}")
    if timings.load_seconds is not None:
        parts.append(f"loaded in {seconds_text(timings.load_seconds)}")
    ends = {"cancelled": "interrupted", "length": f"ended by {result.stop_reason}"}
    parts.append(ends.get(result.finish_reason, f"ended by {result.stop_reason!r}"))
    return " | ".join(parts)


def _decode_speed(timings: Timings) -> str:
    if not timings.decode_seconds:
        return ""
    return f" in {seconds_text(timings.decode_seconds)} ({timings.decode_tokens_per_second:.0f} tokens/s)"


def _tell_logprobs(model: Model, result: GenerationResult) -> None:
    for sampled in result.logprobs or ():
        others = ", ".join(f"{_token_text(model, token)} {logprob:.3f}" for token, logprob in sampled.top)
        remark(f"{_token_text(model, sampled.token):>20} {sampled.logprob:8.3f}   {others}".rstrip())


def _token_text(model: Model, token: int) -> str:
    decoder = model.tokenizer.stream()
    return repr(decoder.push(token) + decoder.flush())
