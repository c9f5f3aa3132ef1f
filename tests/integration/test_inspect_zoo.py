"""Structure and cost of models that are named in the documentation, with random weights."""

from collections import Counter

import pytest
import torch

from evoquant import models
from evoquant.graph import capture, published_macs

PUBLISHED_GMACS = {
    "mobilevit_xxs": 0.42,
    "mobilevit_s": 2.03,
    "mobilevitv2_050": 0.48,
    "deit_tiny_patch16_224": 1.26,
    "swin_tiny_patch4_window7_224": 4.51,
    "efficientformer_l1": 1.30,
    "levit_128s": 0.31,
    "efficientvit_b0": 0.10,
    "coatnet_nano_rw_224": 2.41,
    "tiny_vit_5m_224": 1.28,
    "resnet18": 1.82,
    "mobilenetv2_100": 0.31,
    "convnext_atto": 0.55,
}
"""timm, results/benchmark-infer-*.csv, column infer_gmacs: rounded to two decimals."""

ATTENTIONS = {
    "mobilevit_xxs": 9,
    "mobilevit_s": 9,
    "mobilevitv2_050": 9,
    "deit_tiny_patch16_224": 12,
    "swin_tiny_patch4_window7_224": 12,
    "efficientformer_l1": 1,
    "levit_128s": 11,
    "efficientvit_b0": 4,
    "coatnet_nano_rw_224": 9,
    "tiny_vit_5m_224": 10,
    "resnet18": 0,
    "mobilenetv2_100": 0,
    "convnext_atto": 0,
}
BRIDGES_PER_BLOCK = {"mobilevit_xxs": 4, "mobilevit_s": 4, "mobilevitv2_050": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED_GMACS)
def test_model_is_captured_and_classified(name):
    torch.manual_seed(0)
    model = models.create(name).eval()
    size = model.default_cfg["input_size"]
    captured = capture(model, size, name=name)
    images = torch.randn(2, *size)
    with torch.no_grad():
        expected = model(images)
    assert ((expected - captured(images)).abs().max() / expected.abs().max()).item() < 1e-5
    assert captured.batch_norms.remaining == ()

    graph = captured.graph
    assert round(published_macs(graph, captured.batch_norms) / 1e9, 2) == PUBLISHED_GMACS[name]
    roles = Counter(op.role.value for op in graph.ops)
    assert roles["attention_out"] == ATTENTIONS[name]
    assert roles["stem"] >= 1
    assert roles["head"] == (2 if name in ("efficientformer_l1", "levit_128s") else 1)
    bridges = Counter(op.block for op in graph.ops if op.role == "bridge" and op.block_kind == "mobilevit")
    assert list(bridges.values()) == ([BRIDGES_PER_BLOCK[name]] * 3 if name in BRIDGES_PER_BLOCK else [])


@pytest.mark.slow
def test_pointwise_attention_of_mobilevitv2_is_attention():
    graph = capture(models.create("mobilevitv2_050"), (3, 64, 64), name="mobilevitv2_050").graph
    inside = [op for op in graph.ops if ".attn." in op.name]
    assert len(inside) == 18
    assert all(op.kind == "conv2d" and op.role.is_attention for op in inside)
