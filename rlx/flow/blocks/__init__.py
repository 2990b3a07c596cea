"""One file per block: a frozen dataclass with `emit(ctx, input)`. Read `rms_norm.py` for a small one."""

from rlx.flow.blocks.activation import ActivationStage
from rlx.flow.blocks.attention_pool import AttentionPoolStage
from rlx.flow.blocks.convolution import Conv1dStage
from rlx.flow.blocks.cross_attention import CrossAttentionStage
from rlx.flow.blocks.custom import CustomStage
from rlx.flow.blocks.distance_bias import DistanceBiasStage
from rlx.flow.blocks.gated_delta import GatedDeltaStage
from rlx.flow.blocks.gated_mlp import GatedKeys
from rlx.flow.blocks.gather import AddInputStage, GatherAddStage, GatherStage
from rlx.flow.blocks.geglu_mlp import GeGluMlpStage
from rlx.flow.blocks.gelu_mlp import GeluMlpStage
from rlx.flow.blocks.last_token import LastTokenStage
from rlx.flow.blocks.layer_norm import LayerNormStage
from rlx.flow.blocks.learned_positions import LearnedPositionsStage
from rlx.flow.blocks.linear import LinearStage
from rlx.flow.blocks.lm_head import LmHeadStage
from rlx.flow.blocks.mask import MaskKind
from rlx.flow.blocks.moe_mlp import GatedUnit, MoeMlpStage, Routing
from rlx.flow.blocks.named import NamedStage
from rlx.flow.blocks.parallel import ParallelStage
from rlx.flow.blocks.patch_embed import FirstAndMeanStage, LayerScaleStage, PatchEmbedStage, PrefixTokensStage
from rlx.flow.blocks.per_layer_input import PerLayerInputsStage, PerLayerInputStage
from rlx.flow.blocks.pooling import NormalizeStage, PoolAllStage, PoolStage
from rlx.flow.blocks.query_scale import QueryScaleStage
from rlx.flow.blocks.repeat import RepeatStage
from rlx.flow.blocks.residual import AddResidualStage, SaveResidualStage
from rlx.flow.blocks.rms_norm import RmsNormStage
from rlx.flow.blocks.rope_tables import NamedRopeTablesStage, RopeTableData, RopeTablesStage
from rlx.flow.blocks.scale import ScaleStage, WeightScaleStage
from rlx.flow.blocks.self_attention import HeadNorm, SelfAttentionStage
from rlx.flow.blocks.self_attn_prefill import SelfAttnPrefillSpec, SelfAttnPrefillStage
from rlx.flow.blocks.sequence import SequenceStage
from rlx.flow.blocks.soft_cap import SoftCapStage
from rlx.flow.blocks.stream import SaveStreamStage, TapStage, UseStreamStage
from rlx.flow.blocks.swiglu_mlp import SwiGluMlpStage
from rlx.flow.blocks.token_embed import TokenEmbedStage

__all__ = [
    "ActivationStage",
    "AddInputStage",
    "AddResidualStage",
    "AttentionPoolStage",
    "Conv1dStage",
    "CrossAttentionStage",
    "CustomStage",
    "DistanceBiasStage",
    "FirstAndMeanStage",
    "GatedDeltaStage",
    "GatedKeys",
    "GatedUnit",
    "GatherAddStage",
    "GatherStage",
    "GeGluMlpStage",
    "GeluMlpStage",
    "HeadNorm",
    "LastTokenStage",
    "LayerNormStage",
    "LayerScaleStage",
    "LearnedPositionsStage",
    "LinearStage",
    "LmHeadStage",
    "MaskKind",
    "MoeMlpStage",
    "NamedRopeTablesStage",
    "NamedStage",
    "NormalizeStage",
    "ParallelStage",
    "PatchEmbedStage",
    "PerLayerInputStage",
    "PerLayerInputsStage",
    "PoolAllStage",
    "PoolStage",
    "PrefixTokensStage",
    "QueryScaleStage",
    "RepeatStage",
    "RmsNormStage",
    "RopeTableData",
    "RopeTablesStage",
    "Routing",
    "SaveResidualStage",
    "SaveStreamStage",
    "ScaleStage",
    "SelfAttentionStage",
    "SelfAttnPrefillSpec",
    "SelfAttnPrefillStage",
    "SequenceStage",
    "SoftCapStage",
    "SwiGluMlpStage",
    "TapStage",
    "TokenEmbedStage",
    "UseStreamStage",
    "WeightScaleStage",
]
