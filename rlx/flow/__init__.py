"""Flow: what a model author writes. Read `flow.py` first."""

from rlx.flow.context import FlowCtx, Operand
from rlx.flow.flow import ModelFlow
from rlx.flow.mrope import MRopeFrequencies
from rlx.flow.profile import Profile
from rlx.flow.rope_scaling import RopeFrequencies, rope_frequencies
from rlx.flow.stage import BlockStage
from rlx.flow.value import FlowValue
from rlx.flow.weights import DictWeights, MappedWeights, WeightSource

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
