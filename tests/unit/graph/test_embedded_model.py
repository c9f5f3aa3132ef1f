"""The shipped hybrid: all roles of a hybrid occur, and the published rule differs from the structure."""

from collections import Counter

import torch

from evoquant.graph import capture
from evoquant.models import mobilevit_micro


def test_structure_of_the_embedded_model():
    torch.manual_seed(0)
    model = mobilevit_micro().eval()
    captured = capture(model, (1, 32, 32), name="mobilevit_micro")
    counts = Counter(op.role.value for op in captured.graph.ops)
    assert counts == {
        "stem": 1,
        "pointwise": 11,
        "depthwise": 5,
        "bridge": 8,
        "attention_qkv": 4,
        "attention_qk": 4,
        "attention_av": 4,
        "attention_out": 4,
        "mlp_in": 4,
        "mlp_out": 4,
        "head": 1,
    }
    assert captured.batch_norms.folded == 23
    assert captured.batch_norms.remaining == ()
    bridges = [op.name for op in captured.graph.ops if op.role == "bridge" and op.block == "stages.2.1"]
    assert bridges == [
        f"stages.2.1.{name}" for name in ("conv_kxk.conv", "conv_1x1", "conv_proj.conv", "conv_fusion.conv")
    ]
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(captured(images), model(images), rtol=1e-5, atol=1e-5)
