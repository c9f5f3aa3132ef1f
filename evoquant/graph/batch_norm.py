"""Folding of batch normalizations into the convolutions and linear layers beside them.

    y = γ·(x − μ)/√(σ² + ε) + β = s·x + t        with s = γ/√(σ² + ε), t = β − s·μ

After a product:  W ← s·W,      b ← s·b + t        (s along the output channels)
Before a product: W ← W·s,      b ← b + Σ W·t      (s along the input channels; exact only where nothing is padded)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from evoquant.graph.canonical import aten, remove_dead_code
from evoquant.graph.constants import attribute, constant, is_constant
from evoquant.graph.export import EXAMPLE_BATCH

_PRODUCTS = (aten.conv2d.default, aten.linear.default)


@dataclass(frozen=True, slots=True)
class BatchNormReport:
    """What became of the batch normalizations of a model.

    Attributes:
        folded: How many were folded.
        remaining: Names of the nodes that could not be.
        elements: Values that all of them together normalize, for one image.
    """

    folded: int
    remaining: tuple[str, ...]
    elements: int


def fold_batch_norms(program: fx.GraphModule) -> BatchNormReport:
    """Fold every batch normalization that has a product of its own before or after it."""
    norms = [node for node in program.graph.nodes if node.target is aten.batch_norm.default]
    elements = sum(int(node.meta["val"].numel()) for node in norms) // EXAMPLE_BATCH
    folded = sum(_fold_back(program, node) or _fold_forward(program, node) for node in norms)
    remove_dead_code(program)
    remaining = tuple(node.name for node in program.graph.nodes if node.target is aten.batch_norm.default)
    return BatchNormReport(folded, remaining, elements)


def _fold_back(program: fx.GraphModule, norm: fx.Node) -> bool:
    product = _before(norm)
    if product is None:
        return False
    weight, bias = _weights(program, product)
    scale, shift = _affine(program, norm)
    if weight.shape[0] != scale.numel():
        return False
    new_weight = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    new_bias = shift if bias is None else bias.double() * scale + shift
    _set(program, product, new_weight, new_bias)
    source = norm.args[0]
    norm.replace_all_uses_with(source)  # type: ignore[arg-type]
    return True


def _before(norm: fx.Node) -> fx.Node | None:
    """The product that only the norm reads, for a linear layer also through a reshape that keeps its channels last."""
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    through_reshape = source.target is aten.reshape.default and len(source.users) == 1
    product = source.args[0] if through_reshape else source
    if not isinstance(product, fx.Node) or product.target not in _PRODUCTS or len(product.users) != 1:
        return None
    if not is_constant(product.args[1]):
        return None
    if product.target is aten.linear.default and norm.meta["val"].dim() != 2:
        return None
    return None if through_reshape and product.target is aten.conv2d.default else product


def _fold_forward(program: fx.GraphModule, norm: fx.Node) -> bool:
    products = _readers(norm)
    if not products or not all(_takes_affine_input(program, product, norm) for product in products):
        return False
    scale, shift = _affine(program, norm)
    for product in products:
        weight, bias = _weights(program, product)
        taps = weight.double().flatten(2).sum(-1) if weight.dim() > 2 else weight.double()
        new_weight = weight.double() * scale.reshape(1, -1, *[1] * (weight.dim() - 2))
        new_bias = taps @ shift
        _set(program, product, new_weight, new_bias if bias is None else new_bias + bias.double())
    norm.replace_all_uses_with(norm.args[0])  # type: ignore[arg-type]
    return True


def _readers(norm: fx.Node) -> list[fx.Node]:
    """Nodes that read the norm, directly or through averages of equal weights, with which it commutes."""
    found: list[fx.Node] = []
    for user in norm.users:
        averages = user.target is aten.adaptive_avg_pool2d.default or (
            user.target is aten.avg_pool2d.default and not any(_pool_padding(user))
        )
        found.extend(_readers(user) if averages else [user])
    return found


def _pool_padding(pool: fx.Node) -> list[int]:
    return pool.args[3] if len(pool.args) > 3 else pool.kwargs.get("padding", [0])  # type: ignore[return-value]


def _takes_affine_input(program: fx.GraphModule, product: fx.Node, norm: fx.Node) -> bool:
    if product.target not in _PRODUCTS or not is_constant(product.args[1]):
        return False
    if product.target is aten.linear.default:
        return product.args[0] is norm and bool(norm.meta["val"].dim() == 2)
    padding = product.args[4] if len(product.args) > 4 else [0, 0]
    channels = attribute(program, str(norm.args[3].target)).numel()  # type: ignore[union-attr]
    is_dense = attribute(program, product.args[1].target).shape[1] == channels  # type: ignore[union-attr,arg-type]
    return not any(padding) and is_dense  # type: ignore[arg-type]


def _affine(program: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor]:
    """Scale and shift in double precision."""
    _, gamma, beta, mean, variance, _, _, eps, _ = norm.args
    mu, sigma2 = (attribute(program, str(item.target)).double() for item in (mean, variance))  # type: ignore[union-attr]
    scale = torch.rsqrt(sigma2 + float(eps))  # type: ignore[arg-type]
    if isinstance(gamma, fx.Node):
        scale = scale * attribute(program, str(gamma.target)).double()
    shift = -scale * mu
    if isinstance(beta, fx.Node):
        shift = shift + attribute(program, str(beta.target)).double()
    return scale, shift


def _weights(program: fx.GraphModule, product: fx.Node) -> tuple[Tensor, Tensor | None]:
    bias = product.args[2] if len(product.args) > 2 else None
    weight = attribute(program, str(product.args[1].target))  # type: ignore[union-attr]
    return weight, attribute(program, str(bias.target)) if isinstance(bias, fx.Node) else None


def _set(program: fx.GraphModule, product: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Store new weights beside the old ones, which another node may read too."""
    path = str(product.args[1].target)  # type: ignore[union-attr]
    old = attribute(program, path)
    bias_path = f"{path.removesuffix('weight')}bias" if path.endswith("weight") else f"{path}_bias"
    new = [
        constant(program, product, where, value.to(old.dtype)) for where, value in ((path, weight), (bias_path, bias))
    ]
    product.args = (product.args[0], *new, *product.args[3:])
