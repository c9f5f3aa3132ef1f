import pytest
import torch
from torch import nn

from evoquant.deploy.functions import activation_of
from evoquant.graph import capture

FUNCTIONS = [
    (nn.ReLU(), "relu"),
    (nn.ReLU6(), "relu6"),
    (nn.SiLU(), "silu"),
    (nn.GELU(), "gelu"),
    (nn.GELU(approximate="tanh"), None),
    (nn.Hardswish(), "hard_swish"),
    (nn.Hardsigmoid(), "hard_sigmoid"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.Hardtanh(0.0, 6.0), "relu6"),
    (nn.Hardtanh(-1.0, 1.0), None),
    (nn.Tanh(), None),
]


class Clamp(nn.Module):
    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        return torch.clamp(x, self.low, self.high)


@pytest.mark.parametrize(
    ("function", "kernel"), [*FUNCTIONS, (Clamp(0, None), "relu"), (Clamp(0, 6), "relu6"), (Clamp(None, 6), None)]
)
def test_activation_functions_have_the_kernel_that_computes_them(function, kernel):
    captured = capture(nn.Sequential(nn.Conv2d(3, 4, 1), function).eval(), (3, 4, 4), name="one")
    (node,) = [
        node for node in captured.program.graph.nodes if node.op == "call_function" and "conv" not in str(node.target)
    ]
    assert activation_of(node) == kernel
