"""Genomes that a search starts from, because the structure of the network suggests them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evoquant.errors import ConfigurationError
from evoquant.space.axes import N_AXES
from evoquant.space.presets import EDGE_ROLES, UNIFORM_PRESETS, efficientquant_plan, preset_plan, uniform_plan
from evoquant.space.space import Genes, SearchSpace
from evoquant.types import LayerQuantConfig, Op, OpKind, QuantizationScheme, Role

_TRANSFORMER_ROLES = (
    Role.ATTENTION_QKV,
    Role.ATTENTION_QK,
    Role.ATTENTION_AV,
    Role.ATTENTION_OUT,
    Role.MLP_IN,
    Role.MLP_OUT,
)


def structured_seeds(
    space: SearchSpace,
    *,
    sensitivity: Mapping[str, float] | None = None,
    classes: Mapping[str, str] | None = None,
    levels: int = 4,
) -> list[tuple[str, Genes]]:
    """Named seeds, no two of the same phenotype, best-known ones first.

    They are the nearest genomes to the uniform presets, to hybrids of uniform and log2, to the published hybrid rule,
    to convolutions at 8 and the rest at 4 bits and the reverse, and, where sensitivities are given, mixtures of 8 and
    4 bits in which the least sensitive groups are lowered first.

    Args:
        space: The space to express them in.
        sensitivity: Score of each group by name; more is more sensitive.
        classes: Classes for the published rule (see ``efficientquant_plan``).
        levels: How many mixtures to make.

    Raises:
        ConfigurationError: If ``sensitivity`` misses a group.
    """
    graph = space.graph
    plans = {name: preset_plan(name, graph) for name in UNIFORM_PRESETS if name != "fp32"} | {
        "hybrid_log2_attention": _hybrid(space, log2_weights=False),
        "hybrid_log2": _hybrid(space, log2_weights=True),
        "efficientquant": efficientquant_plan(graph, classes),
        "local_8_global_4": _split(space, global_bits=4),
        "local_4_global_8": _split(space, global_bits=8),
        "fp32": uniform_plan(graph, *UNIFORM_PRESETS["fp32"]),
    }
    named = [(name, space.nearest(plan)) for name, plan in plans.items()]
    if sensitivity is not None:
        named += sensitivity_seeds(space, sensitivity, levels=levels)
    unique: dict[str, tuple[str, Genes]] = {}
    for name, genes in named:
        unique.setdefault(space.phenotype_hash(genes), (name, genes))
    return list(unique.values())


def sensitivity_seeds(space: SearchSpace, sensitivity: Mapping[str, float], *, levels: int) -> list[tuple[str, Genes]]:
    """Mixtures of W8A8 with W4A8 and with W4A4 in which ever more of the least sensitive groups have fewer bits.

    Args:
        space: The space to express them in.
        sensitivity: Score of each group by name; more is more sensitive.
        levels: Mixtures of each kind; the i-th lowers i / (levels + 1) of the groups.

    Raises:
        ConfigurationError: If ``sensitivity`` misses a group.
    """
    missing = [group.name for group in space.groups if group.name not in sensitivity]
    if missing:
        raise ConfigurationError(f"Sensitivities are missing for the groups {', '.join(missing)}.")
    order = sorted(range(len(space.groups)), key=lambda index: (sensitivity[space.groups[index].name], index))
    high = space.nearest(uniform_plan(space.graph, 8, 8))
    seeds = []
    for label in ("w4a8", "w4a4"):
        low = space.nearest(preset_plan(label, space.graph))
        for level in range(1, levels + 1):
            genes = high.reshape(-1, N_AXES).copy()
            lowered = order[: round(len(order) * level / (levels + 1))]
            genes[lowered] = low.reshape(-1, N_AXES)[lowered]
            seeds.append((f"sensitivity_{label}_{level}_of_{levels}", space.repair(genes.ravel())))
    return seeds


def _hybrid(space: SearchSpace, *, log2_weights: bool) -> dict[str, LayerQuantConfig]:
    plan = uniform_plan(space.graph, 8, 8)
    for op in space.graph.ops:
        if op.role is Role.ATTENTION_AV:
            plan[op.name] = replace(
                plan[op.name], weight_bits=4, activation_bits=4, activation_scheme=QuantizationScheme.LOG2
            )
        elif log2_weights and op.kind is not OpKind.MATMUL and op.role in _TRANSFORMER_ROLES:
            plan[op.name] = replace(plan[op.name], weight_bits=4, weight_scheme=QuantizationScheme.LOG2)
    return plan


def _split(space: SearchSpace, *, global_bits: int) -> dict[str, LayerQuantConfig]:
    """Weights of 4 bits on one side of a hybrid and of 8 on the other, activations of 8."""
    fine, coarse = uniform_plan(space.graph, 8, 8), preset_plan("w4a8", space.graph)

    def chosen(op: Op) -> LayerQuantConfig:
        is_global = op.role in _TRANSFORMER_ROLES
        has_four = op.role not in EDGE_ROLES and is_global == (global_bits == 4)
        return coarse[op.name] if has_four else fine[op.name]

    return {op.name: chosen(op) for op in space.graph.ops}
