"""Activation functions of a program as kernels name them."""

from __future__ import annotations

from torch import fx

PLAIN = {
    "relu": "relu",
    "relu6": "relu6",
    "silu": "silu",
    "hardswish": "hard_swish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hard_sigmoid",
}
CLAMPS = {"hardtanh": (-1.0, 1.0), "clamp": (None, None), "clamp_min": (None, None)}
CLAMPED = {(0.0, 6.0): "relu6", (0.0, None): "relu"}


def activation_of(node: fx.Node) -> str | None:
    """The kernel that computes a node, or None if it is no activation function that kernels have."""
    name = str(node.target).split(".")[1] if "." in str(node.target) else ""
    if name in PLAIN:
        return PLAIN[name]
    if name == "gelu":
        approximate = (*node.args[1:], node.kwargs.get("approximate", "none"))[0]
        return "gelu" if approximate == "none" else None
    if name in CLAMPS:
        named = tuple(
            node.kwargs.get(key) for key in (("min_val", "max_val") if name == "hardtanh" else ("min", "max"))
        )
        given = (*node.args[1:], *named[len(node.args) - 1 :])
        bounds = [default if value is None else value for value, default in zip(given[:2], CLAMPS[name], strict=True)]
        return next((kernel for limits, kernel in CLAMPED.items() if list(limits) == bounds), None)
    return None
