"""Starting from what an earlier start found out: no model file is parsed, no pass runs, nothing is compiled or packed.

In: the place of a model and how it is to be compiled. Out: the parts of a `Model`, or None, and then `load.py` makes
them the long way and has them kept here. An entry (`start_cache.py`) holds

- the LIR program, the target it was lowered for, and the keys of its code and its packed weights in their own caches;
- weights that are not packed: norms and biases;
- sizes of the session, facts about the model, the chat template;
- the vocabulary as `rlx/io/tokenizer_index.py` looks it up, where the model has one of that kind.

If any part is gone or damaged the whole is made anew. Next: `load.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.config import settings

if TYPE_CHECKING:
    from rlx.backends.cpu.background import Background
    from rlx.flow.profile import Profile
    from rlx.io.chat_template import UnparsedTemplate
    from rlx.io.checkpoint import Checkpoint
    from rlx.runtime.generate import Tokenizer
    from rlx.runtime.session import Session
    from rlx.runtime.start_cache import StartEntry

MAX_PLAIN_BYTES = 64 << 20
"""Weights that are not packed, in all; a model with more is started the long way."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a model is put together from. `facts` are those that `Model.info` begins with."""

    session: Session
    tokenizer: Tokenizer
    template: UnparsedTemplate | None
    facts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class KeptStart:
    """The place of one entry."""

    cache: Path
    limit: int
    key: str
    path: Path

    def load(self, threads: int) -> Parts | None:
        """The parts of the model, or None if this start has to make them."""
        from rlx.backends.cpu import weight_cache
        from rlx.backends.cpu.module import CpuModule, Ready
        from rlx.backends.cpu.native_code import cached_code
        from rlx.backends.cpu.target import Target
        from rlx.lir.encode import decode
        from rlx.runtime import start_cache
        from rlx.runtime.session import Session

        entry = start_cache.load(self.cache, self.key)
        if entry is None:
            return None
        plain = entry.plain
        packed = weight_cache.load(self.cache, plain["weights"], len(plain["packed"]))
        if packed is None:
            return None
        program, target = decode(plain["program"]), Target(**plain["target"])
        code = cached_code(program.kernels, target, self.cache, plain["object"])
        if code is None:
            return None
        tokenizer, template = self._text_side(entry)
        weights = dict(zip(plain["packed"], packed, strict=True))
        weights |= {index: entry.arrays[f"weight.{index}"] for index in plain["unpacked"]}
        module = CpuModule(program, None, target, threads, None, ready=Ready(code, weights))
        return Parts(Session(module, **plain["session"]), tokenizer, template, plain["facts"])

    def _text_side(self, entry: StartEntry) -> tuple[Tokenizer, UnparsedTemplate | None]:
        from rlx.io.chat_template import UnparsedTemplate

        template, vocabulary = entry.plain["template"], entry.plain["vocabulary"]
        if vocabulary is None:
            from rlx.io.reference import open_model
            from rlx.io.tokenizer import tokenizer_from

            tokenizer = tokenizer_from(open_model(self.path))
        else:
            from rlx.io.tokenizer_gguf import indexed

            names = [name for name in entry.arrays if name.startswith("vocabulary.")]
            arrays = {name.removeprefix("vocabulary."): entry.arrays[name] for name in names}
            tokenizer = indexed(vocabulary, arrays, self.path)
        return tokenizer, None if template is None else UnparsedTemplate(*template)

    def keep(self, parts: Parts, checkpoint: Checkpoint) -> Background | None:
        """Have the entry written later; None if it would be of no use, because weights are packed at every start."""
        from rlx.backends.cpu import disk_cache
        from rlx.backends.cpu.background import Background
        from rlx.runtime import start_cache

        session = parts.session
        program, module = session.module.program, session.module
        weights = [(i, buffer) for i, buffer in enumerate(program.buffers) if buffer.kind == "weight"]
        plain = {index: module.held(index) for index, buffer in weights if not buffer.layout}
        if not module.weights_key or sum(array.nbytes for array in plain.values()) > MAX_PLAIN_BYTES:
            return None
        about: dict[str, Any] = {
            "object": module.code.key,
            "weights": module.weights_key,
            "target": asdict(module.target),
            "packed": [index for index, buffer in weights if buffer.layout],
            "unpacked": list(plain),
            "session": session.sizes,
            "facts": dict(parts.facts),
            "template": parts.template.parts if parts.template is not None else None,
        }

        def write(is_unwanted: Callable[[], bool]) -> None:
            entry = _entry(about, program, plain, checkpoint)
            if not is_unwanted() and start_cache.save(self.cache, self.key, entry):
                disk_cache.trim(self.cache, self.limit)

        return Background("rlx-start-cache", write)


def kept_start(path: Path, profile: Profile, context: int | None) -> KeptStart | None:
    """Where the start of a model is kept; None if nothing is to be kept, or every stage is to be written down."""
    from rlx.runtime.start_cache import entry_key

    environment = settings()
    if not environment.object_cache or environment.dump is not None or profile.backend != "cpu":
        return None
    key = entry_key(path, profile, context)
    return None if key is None else KeptStart(environment.cache_dir, environment.cache_limit, key, path)


def _entry(about: dict[str, Any], program: Any, plain: Mapping[int, Any], checkpoint: Checkpoint) -> StartEntry:
    from rlx.io.gguf import GGUFFile
    from rlx.io.tokenizer_gguf import index_of
    from rlx.lir.encode import encode
    from rlx.runtime.start_cache import StartEntry

    found = index_of(checkpoint) if isinstance(checkpoint, GGUFFile) else None
    vocabulary, arrays = found or (None, {})
    named = {f"vocabulary.{name}": array for name, array in arrays.items()}
    named |= {f"weight.{index}": array for index, array in plain.items()}
    return StartEntry({**about, "program": encode(program), "vocabulary": vocabulary}, named)
