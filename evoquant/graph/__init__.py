"""Capture of a model with ``torch.export``, and analysis of its structure."""

from evoquant.graph.analysis import graph_hash
from evoquant.graph.batch_norm import BatchNormReport
from evoquant.graph.captured import CapturedModel, capture
from evoquant.graph.efficientquant import efficientquant_classes
from evoquant.graph.groups import GroupPolicy, group_ops
from evoquant.graph.published import published_macs

__all__ = [
    "BatchNormReport",
    "CapturedModel",
    "GroupPolicy",
    "capture",
    "efficientquant_classes",
    "graph_hash",
    "group_ops",
    "published_macs",
]
