"""From the settings of a sentence-transformers folder to the head of its flow, and to the weights of the head.

In: `SentenceSettings`. Out: a `PoolHead`, and a weight source that knows the keys `head.dense.0` and so on. Next:
`encoder_family.py` and `embedder.py`, which end a flow with it.
"""

from __future__ import annotations

from rlx.errors import UnsupportedModelError
from rlx.flow.joined_weights import JoinedWeights
from rlx.flow.weights import MappedWeights, WeightSource
from rlx.io.safetensors_folder import open_folder
from rlx.io.sentence_transformers import DenseModule, SentenceSettings
from rlx.models.encoder_head import Dense, Normalize, PoolHead
from rlx.models.unread import refuse_unread_tensors


def pool_head(settings: SentenceSettings, where: str) -> PoolHead:
    """The head that the settings ask for.

    Raises:
        UnsupportedModelError: they are those of a model that scores.
    """
    if not settings.pooling:
        raise UnsupportedModelError(
            "the folder says that its model scores texts, and its configuration is that of one that does not",
            where=where,
            found="modules.json without a pooling",
            expected="a class ForSequenceClassification in architectures",
        )
    return PoolHead(
        settings.pooling,
        tuple(
            Dense(_key(index), step.bias, step.activation) if isinstance(step, DenseModule) else Normalize()
            for index, step in enumerate(settings.steps)
        ),
    )


def _key(index: int) -> str:
    return f"head.dense.{index}"


def with_dense_weights(weights: WeightSource, settings: SentenceSettings) -> WeightSource:
    """The weights of a model and those of the dense layers behind its pooling.

    Raises:
        UnsupportedModelError: a layer's file has other tensors, or of other shapes, than its configuration says.
    """
    sources = [weights]
    for index, step in enumerate(settings.steps):
        if not isinstance(step, DenseModule):
            continue
        checkpoint = open_folder(step.folder)
        kinds = ("weight", "bias") if step.bias else ("weight",)
        names = {f"{_key(index)}.{kind}": f"linear.{kind}" for kind in kinds}
        refuse_unread_tensors(checkpoint, set(names.values()), ())
        table = checkpoint.tensors.get("linear.weight")
        if table is not None and table.shape != (step.out_features, step.in_features):
            raise UnsupportedModelError(
                "the weights of a dense layer have another shape than its configuration says",
                where=f"{step.folder}, linear.weight",
                found=list(table.shape),
                expected=[step.out_features, step.in_features],
            )
        sources.append(MappedWeights(checkpoint, names))
    return weights if len(sources) == 1 else JoinedWeights(sources)


def width_of(settings: SentenceSettings, hidden_size: int) -> int:
    """Elements of a vector."""
    width = len(settings.pooling) * hidden_size
    for step in settings.steps:
        width = step.out_features if isinstance(step, DenseModule) else width
    return width
