"""What was said: segments with their times, as plain text, subtitles or JSON.

In: decoded windows. Out: text in a format. Sources: SubRip as players read it; WebVTT of the W3C. Next:
`transcribe.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rlx.errors import OptionError


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech.

    Attributes:
        id: its number, from 0.
        start, end: in seconds from the beginning of the recording.
        text: what is said.
        tokens: ids of the text and its timestamps.
        temperature, average_log_probability, compression_ratio, no_speech_probability: of the window it is from.
    """

    id: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    average_log_probability: float
    compression_ratio: float
    no_speech_probability: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording.

    Attributes:
        text: all of it.
        segments: the stretches of speech.
        language: code of the language; None for a model that knows one.
        duration: of the recording, in seconds.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str | None
    duration: float

    def to_plain(self) -> dict[str, Any]:
        """As values that JSON holds."""
        segments = [{**asdict(segment), "tokens": list(segment.tokens)} for segment in self.segments]
        return {"text": self.text, "language": self.language, "duration": self.duration, "segments": segments}

    def format(self, name: str) -> str:
        """As "txt" (a line for each segment), "srt" or "vtt".

        Raises:
            OptionError: there is no such format.
        """
        if name not in FORMATS:
            raise OptionError("there is no such format", found=repr(name), expected=", ".join(FORMATS))
        lines = [segment for segment in self.segments if segment.text]
        if name == "txt":
            return "".join(f"{segment.text}\n" for segment in lines)
        if name == "srt":
            parts = [_cue(segment, ",", f"{number}\n", hours=True) for number, segment in enumerate(lines, 1)]
            return "\n".join(parts)
        return "\n".join(["WEBVTT\n", *(_cue(segment, ".", "", hours=False) for segment in lines)])


FORMATS = ("txt", "srt", "vtt")


def _cue(segment: Segment, point: str, number: str, *, hours: bool) -> str:
    times = " --> ".join(timestamp(seconds, point, hours=hours) for seconds in (segment.start, segment.end))
    # an arrow inside a text would be read as another time
    return f"{number}{times}\n{segment.text.replace('-->', '->')}\n"


def timestamp(seconds: float, point: str = ".", *, hours: bool = False) -> str:
    """`01:02.340`, or `00:01:02.340` with hours, which are there anyway from the first one on."""
    milliseconds = round(1000 * seconds)
    whole, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    lead = f"{hour:02d}:" if hours or hour else ""
    return f"{lead}{minute:02d}:{second:02d}{point}{rest:03d}"
