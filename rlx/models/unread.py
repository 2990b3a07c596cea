"""The check that a flow reads every tensor of a checkpoint. Next: `family.py` and `encoder_family.py`, its callers."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable

from rlx.errors import UnsupportedModelError
from rlx.io.checkpoint import Checkpoint


def refuse_unread_tensors(checkpoint: Checkpoint, read: Collection[str], unread: Iterable[str]) -> None:
    """Refuse a tensor that the flow would not read: the model computes something else.

    Args:
        checkpoint: the open file or folder.
        read: the names of the tensors that the flow reads.
        unread: patterns of names that some files carry and no computation reads.

    Raises:
        UnsupportedModelError: naming the tensor.
    """
    patterns = tuple(unread)
    for name in checkpoint.tensors:
        if name not in read and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            raise UnsupportedModelError(
                "the checkpoint holds a tensor that a model of this configuration does not have",
                where=str(checkpoint.path),
                found=name,
                fix="check that the configuration is the one of these weights",
            )
