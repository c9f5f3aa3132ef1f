"""The packed model against the simulation that it was made from."""

import numpy as np
import pytest
import torch
from torch import nn

from evoquant.calibrate.input_scaling import scale_inputs
from evoquant.calibrate.relative_rows import softmax_products, with_relative_rows
from evoquant.deploy import compare_packed
from evoquant.errors import GraphError, KernelError, ModelError, PrecisionError
from evoquant.evaluate import LabelledImages
from evoquant.kernels import info
from evoquant.types import LayerQuantConfig, OpKind, QuantizationGranularity, QuantizationScheme

PRECISIONS = {
    "fp32": {"weight_bits": 32, "activation_bits": 32},
    "w8a8": {},
    "w6a6 symmetric": {"weight_bits": 6, "activation_bits": 6, "use_symmetric": True},
    "w4a8": {"weight_bits": 4},
    "w4a4": {"weight_bits": 4, "activation_bits": 4},
    "w4a8 affine": {"weight_bits": 4, "weight_symmetric": False},
    "w4a8 normal": {"weight_bits": 4, "weight_scheme": QuantizationScheme.NORMAL},
    "w4a4 normal": {"weight_bits": 4, "weight_scheme": QuantizationScheme.NORMAL, "activation_bits": 4},
    "w4a8 log2": {"weight_bits": 4, "weight_scheme": QuantizationScheme.LOG2},
    "w4a8 power of two": {"weight_bits": 4, "weight_scheme": QuantizationScheme.POWER_OF_TWO},
    "ternary": {"weight_bits": 2, "weight_scheme": QuantizationScheme.TERNARY},
    "binary": {"weight_bits": 1, "weight_scheme": QuantizationScheme.BINARY},
    "one scale": {"weight_bits": 5, "granularity": QuantizationGranularity.PER_TENSOR},
    "w16a16": {"weight_bits": 16, "activation_bits": 16},
}


def judged(prepared, plan, model):
    simulated = prepared.simulated(plan)
    images = LabelledImages((prepared.images,), simulated.argmax(1), prepared.reference())
    return compare_packed(model(prepared.images), simulated, images)


@pytest.mark.parametrize("name", PRECISIONS)
def test_it_computes_what_the_simulation_computes(hybrid, name):
    plan = hybrid.plan(**PRECISIONS[name])
    found = judged(hybrid, plan, hybrid.pack(plan))
    assert found["passed"], found
    assert found["same_top1_on_all_images"], found


@pytest.mark.parametrize("isa", info().supported)
@pytest.mark.parametrize("name", ["fp32", "w8a8", "w4a8"])
def test_every_instruction_set_computes_the_same(hybrid, isa, name):
    plan = hybrid.plan(**PRECISIONS[name])
    expected = hybrid.simulated(plan)
    quantization = float((expected - hybrid.reference()).abs().max())
    # Where weights are rounded, a value on the edge of two codes may fall on either side.
    tolerance = 0.5 * quantization if name != "fp32" else 1e-4
    np.testing.assert_allclose(hybrid.pack(plan, isa=isa)(hybrid.images), expected, atol=tolerance)


@pytest.mark.parametrize("name", ["w8a8", "w6a6 symmetric", "w4a4"])
def test_codes_between_products_change_no_bit(hybrid, name, monkeypatch):
    plan = hybrid.plan(**PRECISIONS[name])
    with_codes = hybrid.pack(plan)
    assert any(buffer.is_codes for buffer in with_codes.recipe.buffers)
    monkeypatch.setattr("evoquant.deploy.lowering.code_edges", lambda _graph: {})
    without = hybrid.pack(plan)
    assert not any(buffer.is_codes for buffer in without.recipe.buffers)
    assert with_codes.recipe.arena_elements <= without.recipe.arena_elements
    np.testing.assert_array_equal(with_codes(hybrid.images), without(hybrid.images))


def test_an_attention_as_one_kernel_changes_no_bit(hybrid, monkeypatch):
    plan = hybrid.plan()
    fused = hybrid.pack(plan)
    assert any(step.kind == "attention" for step in fused.recipe.steps)
    monkeypatch.setattr("evoquant.deploy.lowering.fused_attentions", lambda _graph: ())
    apart = hybrid.pack(plan)
    assert not any(step.kind == "attention" for step in apart.recipe.steps)
    np.testing.assert_array_equal(fused(hybrid.images), apart(hybrid.images))


@pytest.mark.parametrize("precision", [{}, {"weight_bits": 4, "activation_bits": 4}, PRECISIONS["fp32"]])
def test_factors_in_front_of_a_depthwise_convolution_are_part_of_the_kernel_before(
    hybrid, prepare_small, monkeypatch, precision
):
    factors = {"depthwise": torch.logspace(-0.5, 0.5, 24, dtype=torch.float64)}
    scaled = prepare_small(hybrid.model, captured=scale_inputs(hybrid.captured, factors))
    plan = scaled.plan(**precision)
    model = scaled.pack(plan)
    assert [name for name in model.recipe.constants if name.endswith(".gains")] == ["grouped.gains"]
    assert judged(scaled, plan, model)["passed"]
    monkeypatch.setattr("evoquant.hardware.tensors._gain_nodes", lambda _graph, _fused: {})
    apart = scaled.pack(plan)
    (more,) = {step.node for step in apart.recipe.steps} - {step.node for step in model.recipe.steps}
    assert more == scaled.captured.graph.op["depthwise"].inputs[0]
    assert judged(scaled, plan, apart)["passed"]


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("precision", [{}, {"weight_bits": 4, "activation_bits": 4}])
def test_an_attention_with_relative_rows(hybrid, prepare_small, monkeypatch, is_fused, precision):
    captured = with_relative_rows(hybrid.captured, softmax_products(hybrid.captured))
    relative = prepare_small(hybrid.model, captured=captured)
    if not is_fused:
        monkeypatch.setattr("evoquant.deploy.lowering.fused_attentions", lambda _graph: ())
    plan = relative.plan(**precision)
    model = relative.pack(plan)
    assert [step.settings["relative"] for step in model.recipe.steps if step.kind == "attention"] == [True] * is_fused
    assert judged(relative, plan, model)["passed"]
    assert not torch.equal(model(hybrid.images), hybrid.pack(plan)(hybrid.images))


def test_scales_per_group_of_channels(hybrid):
    """Groups along the input of linear layers; what has fewer channels keeps one scale per output channel."""
    grouped = {"weight_bits": 4, "granularity": QuantizationGranularity.PER_GROUP, "group_size": 8}
    plan = hybrid.plan(weight_bits=4)
    plan |= {op.name: LayerQuantConfig(**grouped) for op in hybrid.captured.graph.ops if op.kind is OpKind.LINEAR}
    model = hybrid.pack(plan)
    assert not model.fallbacks
    assert judged(hybrid, plan, model)["passed"]


def test_log2_codes_of_a_softmax(hybrid):
    plan = hybrid.plan()
    (op,) = [op for op in hybrid.captured.graph.ops if op.role.value == "attention_av"]
    plan[op.name] = LayerQuantConfig(
        weight_bits=4,
        activation_bits=4,
        activation_scheme=QuantizationScheme.LOG2,
        granularity=QuantizationGranularity.PER_TENSOR,
    )
    model = hybrid.pack(plan)
    assert not model.fallbacks
    assert judged(hybrid, plan, model)["passed"]


def test_an_image_does_not_depend_on_its_batch(hybrid):
    model = hybrid.pack(hybrid.plan())
    together = model(hybrid.images[:5])
    for index in (4, 0, 2):
        torch.testing.assert_close(model(hybrid.images[index : index + 1])[0], together[index], rtol=0, atol=0)
    assert model(hybrid.images[:0]).shape == (0, 6)


def test_what_has_no_kernel_is_named_and_computed_by_torch(prepare_small):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            x = torch.tanh(self.first(x))
            return self.last(nn.functional.avg_pool2d(x, 2).amax((2, 3)))

    prepared = prepare_small(Odd())
    plan = prepared.plan()
    model = prepared.pack(plan)
    assert {reason.split()[0] for reason in model.fallbacks.values()} == {"tanh", "avg_pool2d", "amax"}
    assert judged(prepared, plan, model)["passed"]
    with pytest.raises(ModelError, match="without steps of torch"):
        model.step_times()


def test_codes_that_no_kernel_multiplies_are_named(hybrid):
    plan = hybrid.plan(weight_bits=8, weight_symmetric=False)
    model = hybrid.pack(plan)
    assert "head" in model.fallbacks
    assert "multiplied in floating point" in model.fallbacks["head"]
    assert judged(hybrid, plan, model)["passed"]


def test_two_results_are_refused(prepare_small):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            x = self.conv(x)
            return x, x + 1

    with pytest.raises((GraphError, ModelError)):
        prepare_small(Two()).pack({})


def test_a_plan_must_name_every_operation(hybrid):
    plan = hybrid.plan()
    del plan["head"]
    with pytest.raises(PrecisionError, match=r"no precision for head \(1 operations\)"):
        hybrid.pack(plan)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 12, 13), torch.zeros(3, 12, 12), torch.zeros(1, 3, 12, 12, dtype=torch.float64)]
)
def test_wrong_images_are_refused(hybrid, images):
    model = hybrid.pack(hybrid.plan())
    with pytest.raises(ModelError, match=r"Expected float32 images of shape \(batch, 3, 12, 12\), but got"):
        model(images)


def test_images_in_any_memory_order(hybrid):
    model = hybrid.pack(hybrid.plan())
    images = hybrid.images[:3]
    for other in (images.to(memory_format=torch.channels_last), images.flip(3).contiguous().flip(3)):
        torch.testing.assert_close(model(other), model(images), rtol=0, atol=0)


def test_an_instruction_set_that_is_not_there_is_refused(hybrid):
    missing = next(name for name in ("neon", "avx2") if name not in info().supported)
    with pytest.raises(KernelError, match=missing):
        hybrid.pack(hybrid.plan(), isa=missing)


def test_times_of_single_steps_name_their_nodes(hybrid):
    model = hybrid.pack(hybrid.plan())
    times = model.step_times(repeats=2)
    assert len(times) == len(model.recipe.steps)
    assert all(seconds >= 0.0 for _, _, seconds in times)
    assert {"gemm", "conv", "depthwise", "attention", "layer_norm", "max_pool"} <= {kind for kind, _, _ in times}


class Lowered(nn.Module):
    """A convolution, then what is to be lowered."""

    def __init__(self, body):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.body = body

    def forward(self, x):
        return self.body(self.conv(x), self.scale)


TENSOR_PROGRAMS = {
    "scaled channels": lambda x, s: x * s + s,
    "constants": lambda x, *_: (x * 2.0 - 0.5 * x) / 3.0 + x,
    "difference": lambda x, *_: x.relu() - x,
    "one plane": lambda x, *_: x * x[:, :1],
    "split and cat": lambda x, *_: torch.cat([part.sigmoid() for part in x.chunk(3, 1)], 1),
    "cat of unlike": lambda x, *_: torch.cat([x, x[:, :3]], 1),
    "select": lambda x, *_: x[:, 2] + x.unbind(1)[5],
    "tokens": lambda x, *_: x.flatten(2).transpose(1, 2).softmax(-1).permute(0, 2, 1).reshape(-1, 8, 12, 12),
    "softmax of rows": lambda x, *_: x.transpose(1, 3).softmax(-1),
    "mean of all pixels": lambda x, *_: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1),
    "mean of channels": lambda x, *_: x.mean(1),
    "pool": lambda x, *_: nn.functional.max_pool2d(x, 3, 2, 1),
    "pool of an odd window": lambda x, *_: nn.functional.max_pool2d(x, (3, 2), (2, 1)),
    "clamp": lambda x, *_: x.clamp(0, 6) + x.clamp(min=0),
    "expanded": lambda x, s: x + s.expand(-1, 12, 12) * s.sigmoid(),
    "patches": lambda x, *_: (
        x.reshape(-1, 8, 6, 2, 6, 2).permute(0, 3, 5, 2, 4, 1).reshape(-1, 4, 36, 8).softmax(-1) * 2.0
    ),
    "sum over columns": lambda x, *_: x * x.sum(-1, keepdim=True) + x.transpose(2, 3).sum((2,), keepdim=True),
    "sum of patches": lambda x, *_: (
        x.reshape(-1, 8, 6, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 8, 4, 36).sum(-1, keepdim=True).relu()
    ),
    "sum of channels": lambda x, *_: x.sum((2, 3)),
    "norm of the image": lambda x, s: nn.functional.group_norm(x, 1, s.flatten(), s.flatten() - 0.5),
    "norm of patches": lambda x, *_: nn.functional.group_norm(
        x.reshape(-1, 8, 6, 2, 6, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 8, 4, 36), 1
    ),
    "norm of two groups": lambda x, *_: nn.functional.group_norm(x, 2),
    "norm": lambda x, *_: nn.functional.layer_norm(x, (12,)),
    "norm of two axes": lambda x, *_: nn.functional.layer_norm(x, (12, 12)),
}


@pytest.mark.parametrize("name", TENSOR_PROGRAMS)
def test_tensor_operations_give_what_torch_gives(prepare_small, name):
    prepared = prepare_small(Lowered(TENSOR_PROGRAMS[name]), count=3)
    model = prepared.pack(prepared.plan(weight_bits=32, activation_bits=32))
    assert not any("group_norm" in reason for reason in model.fallbacks.values())
    torch.testing.assert_close(model(prepared.images), prepared.reference(), rtol=1e-4, atol=1e-5)
