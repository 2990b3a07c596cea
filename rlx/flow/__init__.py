"""Flow: what a model author writes. Read `flow.py` first.

The names below are imported when they are first used: a warm start needs `profile.py` alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlx.flow.context import FlowCtx, Operand
    from rlx.flow.flow import ModelFlow
    from rlx.flow.mrope import MRopeFrequencies
    from rlx.flow.profile import Profile
    from rlx.flow.rope_scaling import RopeFrequencies, rope_frequencies
    from rlx.flow.stage import BlockStage
    from rlx.flow.value import FlowValue
    from rlx.flow.weights import DictWeights, MappedWeights, WeightSource

_HOMES = {
    "BlockStage": "stage",
    "DictWeights": "weights",
    "FlowCtx": "context",
    "FlowValue": "value",
    "MRopeFrequencies": "mrope",
    "MappedWeights": "weights",
    "ModelFlow": "flow",
    "Operand": "context",
    "Profile": "profile",
    "RopeFrequencies": "rope_scaling",
    "WeightSource": "weights",
    "rope_frequencies": "rope_scaling",
}

__all__ = [
    "BlockStage",
    "DictWeights",
    "FlowCtx",
    "FlowValue",
    "MRopeFrequencies",
    "MappedWeights",
    "ModelFlow",
    "Operand",
    "Profile",
    "RopeFrequencies",
    "WeightSource",
    "rope_frequencies",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlx.flow' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"rlx.flow.{_HOMES[name]}"), name)
