"""Every error RLX raises, one class per cause.

A message says what went wrong, where, what was found against what was expected, and one thing to do about it.
`exit_code` is what the command line returns for the class.
"""

from __future__ import annotations


class RlxError(Exception):
    """The base of all errors a user can meet.

    Args:
        what: one sentence that says what went wrong.
        where: the file, block path, source line or option concerned.
        found: what was there.
        expected: what should have been there.
        fix: one thing the reader can do.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.found, self.expected, self.fix = what, where, found, expected, fix
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole text, one fact per line."""
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where:    {self.where}")
        if self.found is not None:
            lines.append(f"  found:    {self.found}")
        if self.expected is not None:
            lines.append(f"  expected: {self.expected}")
        if self.fix is not None:
            lines.append(f"  fix:      {self.fix}")
        return "\n".join(lines)


class OptionError(RlxError):
    """A flag, environment variable or argument has a value that is not allowed."""

    exit_code = 2


class ModelNotFoundError(RlxError):
    """A model reference or path leads to nothing readable."""

    exit_code = 3


class DownloadError(RlxError):
    """A model could not be fetched, or what arrived is not what was promised."""

    exit_code = 3


class FileFormatError(RlxError):
    """A model file is truncated, damaged or not of the format it claims."""

    exit_code = 4


class UnsupportedModelError(RlxError):
    """A well-formed checkpoint asks for something RLX does not implement."""

    exit_code = 5


class MissingTensorError(RlxError):
    """A weight that the recipe needs is not in the checkpoint."""

    exit_code = 4


class TensorShapeError(RlxError):
    """A weight is in the checkpoint with another shape or type than the recipe needs."""

    exit_code = 4


class TokenizerError(RlxError):
    """A vocabulary or tokenizer description cannot be used."""

    exit_code = 4


class ChatTemplateError(RlxError):
    """A chat template is missing, does not parse, or refuses the conversation."""

    exit_code = 4


class StorageError(RlxError):
    """A file could not be written: no space, no permission."""

    exit_code = 6


class ContextLengthError(RlxError):
    """A prompt does not fit into the context."""

    exit_code = 7


class CacheFullError(RlxError):
    """The paged KV cache has no free page left."""

    exit_code = 7


class PeerError(RlxError):
    """A program that RLX is compared with failed, or said something that cannot be read."""

    exit_code = 1


class InputError(RlxError):
    """An input array has a wrong name, dtype, shape or value."""

    exit_code = 2


class FlowError(RlxError):
    """A flow is put together wrongly: a missing table, an unbalanced residual, an unknown name."""

    exit_code = 8


class ShapeError(FlowError):
    """An op is given operands that its shape rule refuses."""


class VerifyError(RlxError):
    """A graph or program breaks a rule of its level."""

    exit_code = 8


class ParseError(RlxError):
    """A text is not a graph or program."""

    exit_code = 8


class UnsupportedOpError(RlxError):
    """A backend has neither a kernel for an op nor a decomposition to ops it knows."""

    exit_code = 8


class CompileError(RlxError):
    """A pass failed; the message names the reproducer it left."""

    exit_code = 8
