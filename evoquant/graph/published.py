"""The count of multiply-accumulates that model tables publish, to compare with.

timm's benchmark tables give the "GMACs" that fvcore counts. These are not multiply-accumulates alone: beside every
product, matmuls of activations included, they hold 2 per value of a batch normalization, 5 per value of a layer or
group normalization and 1 per value that adaptive average pooling reads. Activation functions, softmax, biases and
elementwise operations count nothing.

References:
    fvcore, fvcore/nn/jit_handles.py (batchnorm_flop_jit, norm_flop_counter, elementwise_flop_counter) and
    fvcore/nn/flop_count.py (which operator has which counter), https://github.com/facebookresearch/fvcore.
    timm, benchmark.py (profile_fvcore) and results/benchmark-infer-*.csv, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

from evoquant.graph.batch_norm import BatchNormReport
from evoquant.types.graph import ModelGraph

_PER_BATCH_NORM_VALUE = 2
_PER_NORM_VALUE = 5


def published_macs(graph: ModelGraph, batch_norms: BatchNormReport) -> int:
    """Cost of one image in the convention of timm's tables; ``graph.macs`` counts the products alone.

    Args:
        graph: A captured model.
        batch_norms: What its capture says of batch normalizations, which the graph has lost by folding.
    """
    norms = sum(node.elements for node in graph.nodes if node.kind in ("layer_norm", "group_norm"))
    pools = [node for node in graph.nodes if node.kind == "adaptive_avg_pool2d"]
    pooled = sum(graph.node[node.inputs[0]].elements for node in pools)
    return graph.macs + _PER_BATCH_NORM_VALUE * batch_norms.elements + _PER_NORM_VALUE * norms + pooled
