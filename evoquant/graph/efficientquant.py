"""The published type rule of EfficientQuant, to compare with roles found from the graph.

References:
    Saha, Xu: EfficientQuant: an efficient post-training quantization for CNN-transformer hybrid models on edge devices,
    T4V workshop at CVPR 2025, https://arxiv.org/abs/2506.11093, algorithm 1.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from evoquant.types.graph import ModelGraph

EfficientQuantClass = Literal["cnn", "transformer"]
_WORDS = ("attn", "Attention", "Transformer")


def efficientquant_classes(model: nn.Module, graph: ModelGraph) -> dict[str, EfficientQuantClass]:
    """Class of every operation of a model by the type and the name of its module.

    Modules are visited last in, first out: a ``Conv2d`` is ``cnn``; a ``Linear``, or a module whose name or type
    contains "attn", "Attention" or "Transformer", is ``transformer``. An operation that is no such module itself, like
    a matmul, has the class of the innermost one around it, and ``cnn`` if there is none.

    Args:
        model: The model as it was captured.
        graph: Its graph, for the names of its operations.
    """
    classes = _module_classes(model)
    return {op.name: _class_of(op.name.split("#")[0], classes) for op in graph.ops}


def _module_classes(model: nn.Module) -> dict[str, EfficientQuantClass]:
    classes: dict[str, EfficientQuantClass] = {}
    queue: list[tuple[nn.Module, str]] = [(model, "")]
    while queue:
        module, parent = queue.pop()
        for name, layer in module.named_children():
            path = f"{parent}.{name}" if parent else name
            if isinstance(layer, nn.Conv2d):
                classes[path] = "cnn"
            elif isinstance(layer, nn.Linear) or any(word in name or word in type(layer).__name__ for word in _WORDS):
                classes[path] = "transformer"
            queue.append((layer, path))
    return classes


def _class_of(path: str, classes: dict[str, EfficientQuantClass]) -> EfficientQuantClass:
    while path:
        if path in classes:
            return classes[path]
        path = path.rpartition(".")[0]
    return "cnn"
