"""A hybrid's graph and a front that look like real ones, made from formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evoquant.types.front import FloatAccuracy, FrontArchitecture, FrontDocument, ParetoPoint, TestedAccuracy
from evoquant.types.graph import Group, ModelGraph, Op, OpKind, Role
from evoquant.types.precision import FLOAT, CalibrationMethod, LayerQuantConfig, QuantizationScheme

BLOCK = (
    ("conv1_1x1", Role.POINTWISE),
    ("conv2_kxk", Role.DEPTHWISE),
    ("conv3_1x1", Role.POINTWISE),
)
TRANSFORMER = (
    ("attn.qkv", Role.ATTENTION_QKV),
    ("attn.qk", Role.ATTENTION_QK),
    ("attn.av", Role.ATTENTION_AV),
    ("attn.proj", Role.ATTENTION_OUT),
    ("mlp.fc1", Role.MLP_IN),
    ("mlp.fc2", Role.MLP_OUT),
)


def _op(name: str, role: Role, block: str) -> Op:
    kind = OpKind.MATMUL if role in (Role.ATTENTION_QK, Role.ATTENTION_AV) else OpKind.CONV
    return Op(
        name=name,
        kind=kind,
        role=role,
        block=block,
        block_kind="transformer" if "transformer" in block else "conv",
        group=name,
        node=name,
        inputs=("x",),
        input_shape=(1, 8, 8, 8),
        weight_shape=(8, 8),
        output_shape=(1, 8, 8, 8),
        geometry=None,
        gemm=(1, 64, 8, 8),
        macs=4096,
        weight_count=0 if kind is OpKind.MATMUL else 64,
        has_bias=True,
        producers=(),
        consumers=(),
    )


@pytest.fixture(scope="session")
def graph() -> ModelGraph:
    ops = [_op("stem.conv", Role.STEM, "stem")]
    for stage in range(5):
        for repeat in range(1 if stage == 0 else 2):
            block = f"stages.{stage}.{repeat}"
            if repeat and stage >= 2:
                ops += [_op(f"{block}.conv_kxk", Role.BRIDGE, block), _op(f"{block}.conv_1x1", Role.BRIDGE, block)]
                for layer in range(2):
                    inner = f"{block}.transformer.{layer}"
                    ops += [_op(f"{inner}.{name}", role, inner) for name, role in TRANSFORMER]
                ops += [_op(f"{block}.conv_proj", Role.BRIDGE, block), _op(f"{block}.conv_fusion", Role.BRIDGE, block)]
            else:
                ops += [_op(f"{block}.{name}", role, block) for name, role in BLOCK]
    ops += [_op("final_conv", Role.POINTWISE, "final_conv"), _op("head.fc", Role.HEAD, "head")]
    return ModelGraph(
        model="mobilevit_demo",
        input_shape=(1, 3, 64, 64),
        nodes=(),
        ops=tuple(ops),
        groups=tuple(Group(op.name, (op.name,)) for op in ops),
        output="head.fc",
        parameters=1_000_000,
    )


def _costs(weight_bits: float, activation_bits: float, noise: float) -> dict[str, float]:
    return {
        "kl": float(0.9 * 2.0 ** (-1.35 * (weight_bits - 2.6)) + 0.5 * 2.0 ** (-1.5 * (activation_bits - 3)))
        * (1 + 0.5 * noise),
        "latency_ms": 1.2 + 0.14 * (weight_bits + 0.5 * activation_bits) * (1 + 0.25 * noise),
        "energy_mj": 0.05 + 0.004 * weight_bits * activation_bits / 4 * (1 + 0.15 * noise),
        "memory_mb": 0.3 + 0.11 * weight_bits * (1 + 0.05 * noise) + 0.01 * activation_bits,
    }


def _tested(kl: float, generator: np.random.Generator) -> TestedAccuracy:
    top1 = max(10.0, 90.6 - 9 * kl + generator.normal(0, 0.1))
    half = 196 * np.sqrt(top1 / 100 * (1 - top1 / 100) / 4000)
    return TestedAccuracy(top1, (top1 - half, top1 + half), 4000, 90.6 - top1, 0.2, kl)


def _plan(graph: ModelGraph, bits: float, generator: np.random.Generator) -> dict[str, LayerQuantConfig]:
    plan = {}
    for op in graph.ops:
        width = int(np.clip(round(bits + generator.normal(0, 1.2)), 3, 8))
        activation = int(np.clip(width + generator.integers(0, 4), 4, 8))
        config = LayerQuantConfig(weight_bits=width, activation_bits=activation)
        if op.role in (Role.STEM, Role.HEAD):
            config = LayerQuantConfig()
        if op.role is Role.ATTENTION_AV and width <= 5:
            config = LayerQuantConfig(
                weight_bits=4, activation_bits=4, activation_scheme=QuantizationScheme.LOG2, use_symmetric=True
            )
        if op.role is Role.MLP_IN and width == 4:
            config = replace(config, weight_scheme=QuantizationScheme.POWER_OF_TWO)
        if op.role is Role.BRIDGE and bits < 4.2:
            config = LayerQuantConfig(weight_bits=2, activation_bits=8, weight_scheme=QuantizationScheme.TERNARY)
        plan[op.name] = replace(config, calibration_method=CalibrationMethod.MSE)
    return plan


@pytest.fixture(scope="session")
def document(graph: ModelGraph) -> FrontDocument:
    generator = np.random.default_rng(0)
    evaluated = [
        _costs(generator.uniform(3, 8), generator.uniform(4, 8), abs(generator.normal(0, 1))) for _ in range(380)
    ]
    front = []
    for index, bits in enumerate(np.linspace(8, 3.2, 18)):
        values = _costs(bits, min(8, bits + 1), -0.3 * generator.uniform(0.6, 1))
        name = f"W{bits:.1f}A{min(8, bits + 1):.1f}"
        plan = _plan(graph, bits, generator)
        front.append(ParetoPoint(f"p{index + 1:02d}", name, values, plan, _tested(values["kl"], generator)))
    baselines = []
    for name, weight, activation in (("w8a8", 8, 8), ("w6a6", 6, 6), ("w4a8", 4, 8), ("w4a4", 4, 4)):
        values = _costs(weight, activation, 0.1)
        config = LayerQuantConfig(weight_bits=weight, activation_bits=activation)
        tested = _tested(values["kl"], generator)
        baselines.append(ParetoPoint(name, name, values, {op.name: config for op in graph.ops}, tested))
    whole = {"kl": 0.0, "latency_ms": 8.7, "energy_mj": 0.9, "memory_mb": 4.4}
    plan = {op.name: FLOAT for op in graph.ops}
    baselines.append(ParetoPoint("fp32", "fp32", whole, plan, _tested(0.0, generator)))
    history = [(24 * n, 0.62 * (1 - 0.55 * float(np.exp(-n / 4.0)))) for n in range(1, 17)]
    return FrontDocument(
        model="mobilevit_demo",
        device="host_cpu",
        status="done",
        objectives=("kl", "latency_ms", "energy_mj", "memory_mb"),
        front=tuple(front),
        baselines=tuple(baselines),
        knee="p09",
        hypervolume=history[-1][1],
        reference_point={"kl": 1.0, "latency_ms": 5.0, "energy_mj": 0.4, "memory_mb": 2.0},
        hypervolume_history=tuple(history),
        hypervolume_images=tuple(64 * count for count, _ in history),
        hypervolume_seconds=tuple(0.5 * count for count, _ in history),
        evaluated=(*evaluated, *(point.objectives for point in front)),
        evaluations=400,
        failures=2,
        images_evaluated=210_000,
        seconds=412.0,
        verdict="The knee needs 38 % less memory and 31 % less energy than w8a8 at 0.3 points lower top-1.",
        provenance={
            "evoquant": "0.1.0",
            "seed": 0,
            "machine": {"cpu": "x86-64, AVX2", "cores": 2},
            "command": "evoquant search <x>.yaml",
        },
    )


@pytest.fixture(scope="session")
def family(document: FrontDocument) -> FrontDocument:
    """The same front shared by two architectures, the second of which has its lower half."""

    def owned(point: ParetoPoint, index: int, prefix: str = "") -> ParetoPoint:
        name = "large" if index % 2 == 0 else "small"
        mark = prefix if name == "small" else ""
        return replace(point, id=f"{mark}{point.id}", name=f"{name} {point.name}", architecture=name)

    own = FloatAccuracy(512, 90.0, 0.31, 0.0, 0.0)
    behind = FloatAccuracy(512, 87.5, 0.39, 0.08, 0.02)
    return replace(
        document,
        front=tuple(owned(point, index) for index, point in enumerate(document.front)),
        baselines=tuple(owned(point, index, "small.") for index, point in enumerate(document.baselines)),
        architectures=(
            FrontArchitecture("large", "mobilevit_demo", 64, 300, own, own),
            FrontArchitecture("small", "mobilevit_demo", 48, 80, behind),
        ),
    )
