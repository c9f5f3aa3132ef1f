"""A recipe on the native kernels: memory, packed weights, and one native program for each stretch without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np
import torch

from evoquant.deploy.recipe import Buffer, Recipe, Step, View
from evoquant.deploy.workspace import CODES_PER_VALUE
from evoquant.errors import ModelError
from evoquant.evaluate.native_quantizer import activation_codes
from evoquant.kernels import Attention, Matmul, pack_conv, pack_depthwise, pack_gemm
from evoquant.kernels.arrays import FloatArray, Values, aligned, aligned_copy
from evoquant.kernels.program import Program
from evoquant.quant import FakeQuant, QuantParams
from evoquant.types import ConvGeometry, QuantizationScheme

TENSOR_STEPS = ("add", "mul", "softmax", "mean_rows")


class Executor:
    """Runs a recipe for one image at a time.

    Args:
        recipe: What to run.
        isa: Instruction set; None takes the best, capped by ``EVOQUANT_ISA``.

    Attributes:
        input: Where the image goes, (channels, height, width) in whatever strides the first kernel wants.
        output: Where the result is after a run.

    Raises:
        KernelError: If the native module is missing or a step does not fit it.
        ModelError: If a stored tensor is missing.
    """

    def __init__(self, recipe: Recipe, *, isa: str | None = None) -> None:
        self._recipe = recipe
        self._isa = isa
        self._arena = aligned((recipe.arena_elements,))
        self._constants = {name: _constant(tensor) for name, tensor in recipe.constants.items()}
        self.input = self._array(recipe.input)
        self.output = self._array(recipe.output)
        self.step_nodes: list[str] = []
        self.stretches: list[Program | Callable[[], None]] = []
        for step in recipe.steps:
            self._add(step)

    def run(self) -> None:
        """Compute the output of the image that is in ``input``."""
        for stretch in self.stretches:
            if isinstance(stretch, Program):
                stretch.run()
            else:
                stretch()

    def _array(self, view: View) -> Any:  # noqa: ANN401 - real values, or the codes of one product for another
        buffer: Buffer = self._recipe.buffers[view.buffer]
        memory: Values
        if buffer.constant is None:
            memory, start = self._arena, buffer.offset + view.offset
        else:
            if buffer.constant not in self._constants:
                raise ModelError(f"The stored tensor '{buffer.constant}' is missing.")
            memory, start = self._constants[buffer.constant], view.offset
        if buffer.is_codes:
            memory, start = memory.view(np.uint8), CODES_PER_VALUE * buffer.offset + view.offset
        last = start + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
        if start < 0 or last >= memory.size or min(view.strides, default=0) < 0:
            raise ModelError(f"A view of {view.shape} reaches outside of its buffer {view.buffer}.")
        strides = tuple(stride * memory.itemsize for stride in view.strides)
        return np.lib.stride_tricks.as_strided(memory[start:], view.shape, strides)

    def _add(self, step: Step) -> None:
        reads = {name: self._array(view) for name, view in step.reads.items()}
        out = self._array(step.writes)
        self.step_nodes.append(step.node)
        if step.kind in ("torch", "fake_quantize"):
            self.stretches.append(_torch_call(step, reads, out))
            return
        if not self.stretches or not isinstance(self.stretches[-1], Program):
            self.stretches.append(Program(isa=self._isa))
        program = self.stretches[-1]
        assert isinstance(program, Program), "made above"
        if step.kind in ("gemm", "conv", "depthwise"):
            self._add_product(program, step, reads, out)
        elif step.kind == "matmul":
            program.matmul(_matmul(step.settings, self._isa), reads["a"], reads["b"], out)
        elif step.kind == "attention":
            products = (_matmul(step.settings[name], self._isa) for name in ("scores", "weighted"))
            attention = Attention(*products, relative=step.settings.get("relative", False))
            program.attention(attention, reads["q"], reads["k"], reads["v"], out)
        else:
            _add_tensor_step(program, step, reads, out)

    def _add_product(self, program: Program, step: Step, reads: dict[str, FloatArray], out: FloatArray) -> None:
        settings = step.settings
        op = settings["op"]
        params = quant_params(settings["input"])
        codes = None if params is None else activation_codes(params)
        weights, _ = self._recipe.weights[op].for_kernel(self._constants.get(f"{op}.bias"), codes)
        weights = replace(weights, gains=self._constants.get(f"{op}.gains"))
        activation, residual = settings["activation"], reads.get("residual")
        result = quant_params(settings.get("result"))
        to = None if result is None else activation_codes(result)
        if step.kind == "gemm":
            matrix = replace(weights, values=weights.values.reshape(len(weights.values), -1))
            gemm = pack_gemm(matrix, codes, activation=activation, isa=self._isa)
            program.product(gemm, reads["x"], out, residual=residual, to=to)
            return
        geometry = _geometry(settings["geometry"])
        pack = pack_depthwise if step.kind == "depthwise" else pack_conv
        packed = pack(weights, geometry, codes, activation=activation, isa=self._isa)
        program.product(packed, reads["x"], out, residual=residual, to=to)


def quant_params(described: dict[str, Any] | None) -> QuantParams | None:
    """A quantizer of activations from its plain JSON values."""
    if described is None:
        return None
    return QuantParams(
        QuantizationScheme(described["scheme"]), described["bits"], torch.tensor(described["scale"]),
        torch.tensor(described["zero_point"], dtype=torch.int32), described["q_min"], described["q_max"],
        described["axis"], levels=tuple(described.get("levels", ())),
    )  # fmt: skip


def _constant(tensor: torch.Tensor) -> FloatArray:
    values: FloatArray = tensor.detach().reshape(-1).float().numpy()
    return aligned_copy(values)


def _geometry(described: dict[str, Any]) -> ConvGeometry:
    pairs = {name: tuple(value) for name, value in described.items() if name != "groups"}
    return ConvGeometry(**pairs, groups=described["groups"])


def _matmul(settings: Mapping[str, Any], isa: str | None) -> Matmul:
    first, second = quant_params(settings["input"]), quant_params(settings["second"])
    if first is None or second is None:
        return Matmul(isa=isa)
    scales = [float(scale) for scale in second.scale.reshape(-1)]
    return Matmul(activation_codes(first), b_scale=scales, b_bits=second.bits, isa=isa)


def _add_tensor_step(program: Program, step: Step, reads: dict[str, FloatArray], out: FloatArray) -> None:
    settings = step.settings
    if step.kind == "copy":
        program.copy(reads["x"], out, factor=settings["factor"])
    elif step.kind == "activate":
        program.activate(settings["function"], reads["x"], out)
    elif step.kind in ("layer_norm", "group_norm"):
        norm = program.layer_norm
        if step.kind == "group_norm":
            norm = partial(program.group_norm, groups=settings.get("groups", 1))
        norm(reads["x"], reads["weight"], reads["bias"], settings["epsilon"], out)
    elif step.kind == "scale_rows":
        program.scale_rows(reads["x"], reads["scale"], reads.get("shift"), out)
    elif step.kind == "max_pool":
        program.max_pool(reads["x"], settings["kernel"], settings["stride"], settings["padding"], out)
    elif step.kind in TENSOR_STEPS:
        getattr(program, step.kind)(*reads.values(), out)
    else:
        raise ModelError(f"Unknown step '{step.kind}' at '{step.node}'.")


def _torch_call(step: Step, reads: dict[str, FloatArray], out: FloatArray) -> Callable[[], None]:
    """A call of torch on the same memory."""
    tensors = {name: torch.from_numpy(array) for name, array in reads.items()}
    target = torch.from_numpy(out)
    if step.kind == "fake_quantize":
        params = quant_params(step.settings["quantizer"])
        assert params is not None, "such a step has a quantizer"
        fake_quant = FakeQuant(params)

        def round_trip() -> None:
            with torch.inference_mode():
                target.copy_(fake_quant(tensors["x"]))

        return round_trip
    operator = _operator(step.settings["operator"])
    arguments = _arguments(step.settings["arguments"], tensors)
    options = {name: _arguments(value, tensors) for name, value in step.settings["options"].items()}

    def call() -> None:
        with torch.inference_mode():
            target.copy_(operator(*arguments, **options))

    return call


def _operator(name: str) -> Callable[..., torch.Tensor]:
    """An ATen operator by its full name.

    Raises:
        ModelError: If this torch has none of that name.
    """
    namespace, *rest = name.split(".")
    if namespace != "aten":
        raise ModelError(f"Expected an operator of ATen, but got '{name}'.")
    try:
        found: Any = reduce(getattr, rest, torch.ops.aten)
    except AttributeError as error:
        raise ModelError(f"This torch ({torch.__version__}) has no operator '{name}'.") from error
    operator: Callable[..., torch.Tensor] = found
    return operator


def _arguments(value: Any, tensors: dict[str, torch.Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return tensors[value["tensor"]]
    if isinstance(value, list):
        return [_arguments(entry, tensors) for entry in value]
    return value
