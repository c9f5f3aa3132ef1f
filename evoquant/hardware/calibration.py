"""Fitting the roofline of a machine to its own latency table, and judging it on entries that it has not seen.

The rate of each native type and work class, two bandwidths (what fits the cache, and what does not), the size of that
cache, the rate of quantizing inputs and scaling results, what each result costs beside its products, and one launch
time are fitted; everything else of the device stays. Entries are those of ``evoquant.kernels``: kernels that read and
write floating point, quantize inside and hold their weights in whole bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from evoquant.errors import HardwareError
from evoquant.hardware.attention import product_and_function
from evoquant.hardware.device import FLOAT_TYPES, Device, Memory, Precision
from evoquant.hardware.provenance import Kind, Quantity
from evoquant.hardware.table import Key, LatencyTable
from evoquant.hardware.work import SPECIAL_FUNCTIONS, WorkClass, stored_bytes

_FLOAT_BYTES = 4
_OUTLIER = 0.1
"""Beyond this error of the logarithm an entry pulls no more strongly."""
_SPREAD = 0.2
"""Expected deviation of the logarithm of a rate from a product of a factor for its type and one for its class."""
_REACH = 5.0
"""How far a logarithm may move from where it starts."""
_EVALUATIONS = 100
_CACHE_BYTES = tuple(2**power for power in range(18, 25))
_PRECISION = re.compile(r"w(\d+)a(\d+)")
_SOURCE = "latency_table"
_START = (40.0, 20.0, 1e-3, 20.0, 4.0)
"""Cache and DRAM bandwidth (10⁹ B/s), launch (ms), quantizing and scaling (10⁹ values/s), products per result."""
_CACHE, _DRAM, _LAUNCH, _CONVERT, _RESULT = range(5)
_TWO_INPUTS = frozenset({"add", "mul"})
_TENSOR_KERNELS = SPECIAL_FUNCTIONS | _TWO_INPUTS | {"mean", "relu", "relu6", "hard_swish", "hard_sigmoid"}


@dataclass(frozen=True, slots=True)
class KernelWork:
    """What an entry of a latency table does.

    Attributes:
        work: Its class.
        native: Native type that multiplies it.
        macs: Multiply-accumulates.
        read: Activations read.
        written: Values written.
        weight_bytes: Bytes of its weights as the kernel holds them.
        is_quantized: Whether it quantizes its input and scales its result.
        applied: Results that a function with an exponential is applied to before they are stored.
    """

    work: WorkClass
    native: str
    macs: int
    read: int
    written: int
    weight_bytes: float
    is_quantized: bool
    applied: int = 0


_Row = tuple[Key, float, KernelWork]
"""Entry of a table, its time in milliseconds, what it does."""


@dataclass(frozen=True, slots=True)
class FitErrors:
    """Relative errors of predicted times, ``|predicted / measured − 1|``.

    Attributes:
        entries: How many were judged.
        median: Their median.
        p90: Their 90th percentile.
        worst: The entry with the largest error.
    """

    entries: int
    median: float
    p90: float
    worst: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted device and its errors.

    Attributes:
        device: The device with fitted figures, each of kind ``measured``.
        fitted: Errors on the half that it was fitted to.
        held_out: Errors on the other half.
    """

    device: Device
    fitted: FitErrors
    held_out: FitErrors


def calibrate_roofline(table: LatencyTable, device: Device, *, seed: int = 0) -> Calibration:
    """Fit the roofline of a device to half of a table and judge it on the other half.

    The errors of the logarithm are minimised by least squares that turn linear for outliers. Rates of a type and class
    with few entries lean on those of the other types and classes.

    Args:
        table: Times taken on the device.
        device: The device as its file describes it; gives the native types and what is not fitted.
        seed: Of the division into halves.

    Raises:
        HardwareError: If the table has fewer than eight measured entries of kernels that multiply.
    """
    rows = [
        (key, entry.median_ms, work)
        for key, entry in sorted(table.entries.items())
        if entry.kind == "measured" and entry.median_ms > 0 and (work := kernel_work(key, device)) is not None
    ]
    if len(rows) < 8:
        raise HardwareError(f"A roofline needs at least 8 measured entries of products, but the table has {len(rows)}.")
    first, second = _halves(rows, seed)
    works, times = [work for *_, work in first], np.array([time for _, time, _ in first])
    fits = [_Fit(works, times, device.float_type, cache_bytes) for cache_bytes in _CACHE_BYTES]
    fit = min(fits, key=lambda fit: fit.run())
    return Calibration(_calibrated(device, fit), _errors(fit, first), _errors(fit, second))


def _halves(rows: Sequence[_Row], seed: int) -> tuple[list[_Row], list[_Row]]:
    """Divide entries at random, so that both halves have as many of each type and class, of every size."""
    ranked = sorted(rows, key=lambda row: (row[2].work, row[2].native, row[2].macs, row[0]))
    swaps = np.random.default_rng(seed).integers(2, size=-(-len(ranked) // 2))
    halves: tuple[list[_Row], list[_Row]] = ([], [])
    for index, row in enumerate(ranked):
        halves[(index + swaps[index // 2]) % 2].append(row)
    return halves


def kernel_work(key: Key, device: Device) -> KernelWork | None:
    """The work of an entry; None for a kernel of another library."""
    op, function = product_and_function(key.op)
    if op in _TENSOR_KERNELS:
        values = prod(key.shape)
        read = 2 * values if op in _TWO_INPUTS else values
        written = key.shape[-1] if op == "mean" else values
        computed = values if op in SPECIAL_FUNCTIONS else 0
        return KernelWork(WorkClass.ELEMENTWISE, device.float_type, computed, read, written, 0.0, is_quantized=False)
    work = _product(op, key, device)
    return replace(work, applied=work.written) if work is not None and function in SPECIAL_FUNCTIONS else work


def _product(op: str, key: Key, device: Device) -> KernelWork | None:
    shape = key.shape
    match = _PRECISION.match(key.precision)
    bits = (int(match[1]), 8 if "lloyd" in key.precision else int(match[2])) if match else (32, 32)
    stored = stored_bytes(bits[0])
    native = _native(bits, device)
    if op == "gemm":
        m, n, k = shape
        return KernelWork(WorkClass.POINTWISE, native, m * n * k, m * k, m * n, n * k * stored, match is not None)
    if op == "matmul":
        batch, m, n, k, _ = shape
        read = batch * (m * k + n * k)
        return KernelWork(WorkClass.ATTENTION, native, batch * m * n * k, read, batch * m * n, 0.0, match is not None)
    if op in ("conv", "depthwise"):
        return _convolution(op, shape, native, stored, is_quantized=match is not None)
    return None


def _convolution(op: str, shape: Sequence[int], native: str, stored: float, *, is_quantized: bool) -> KernelWork:
    height, width, channels = shape[:3]
    out_channels, groups = (shape[3], shape[-1]) if op == "conv" else (channels, channels)
    kh, kw, sh, sw, ph, pw, dh, dw = shape[4:12] if op == "conv" else shape[3:11]
    pixels = _length(height, kh, sh, ph, dh) * _length(width, kw, sw, pw, dw)
    weights = out_channels * kh * kw * channels // groups
    work = WorkClass.DENSE
    if groups == channels > 1:
        work = WorkClass.DEPTHWISE
    elif kh == kw == 1:
        work = WorkClass.POINTWISE
    macs, read = pixels * weights, height * width * channels
    return KernelWork(work, native, macs, read, pixels * out_channels, weights * stored, is_quantized)


def _length(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _native(bits: tuple[int, int], device: Device) -> str:
    """The type that a stored precision runs as; more than 8 bits are multiplied in floating point."""
    if max(bits) > 8:
        return device.float_type
    wanted = Precision(*bits)
    return next(native.name for native in device.types.values() if Precision(*native[1:3]).covers(wanted))


class _Fit:
    """Bandwidths, launch time, rate of quantization, then the rate of each type and class: their logarithms."""

    def __init__(
        self, works: Sequence[KernelWork], times_ms: npt.NDArray[np.float64], float_type: str, cache_bytes: int
    ) -> None:
        self.works = works
        self.times_ms = times_ms
        keys = dict.fromkeys([*((w.native, w.work) for w in works), (float_type, WorkClass.ELEMENTWISE)])
        self.rates = {key: index + len(_START) for index, key in enumerate(keys)}
        self.cache_bytes = cache_bytes
        start = [self._start_rate(key) for key in self.rates]
        self.parameters = np.log(np.array([*_START, *start]))

    def _start_rate(self, key: tuple[str, WorkClass]) -> float:
        """The rate of the entries of a type and class that are fastest, as if nothing but products took time."""
        rows = zip(self.works, self.times_ms, strict=True)
        rates = [work.macs / time / 1e6 for work, time in rows if work.macs and (work.native, work.work) == key]
        return float(np.percentile(rates, 90)) if rates else 1.0

    def run(self) -> float:
        """Minimise the errors; gives what remains of them."""
        columns, start = self._columns(self.works), self.parameters
        apart = self._deviation_from_product() / _SPREAD

        def residuals(parameters: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            errors = np.log(_times_ms(parameters, columns) / self.times_ms) / _OUTLIER
            bent = np.sign(errors) * np.sqrt(2.0 * (np.sqrt(1.0 + errors**2) - 1.0))
            moved = (parameters - start)[: len(_START)]  # what no entry shows stays where it starts
            return np.concatenate([bent, apart @ parameters[len(_START) :], moved])

        found = least_squares(residuals, start, bounds=(start - _REACH, start + _REACH), max_nfev=_EVALUATIONS)
        self.parameters = found.x
        return float(found.cost)

    def _deviation_from_product(self) -> npt.NDArray[np.float64]:
        """What is left of the logarithms of all rates when a term for each type and one for each class are fitted."""
        names = dict.fromkeys(name for key in self.rates for name in key)
        terms = np.array([[name in key for name in names] for key in self.rates], dtype=np.float64)
        return np.asarray(np.eye(len(terms)) - terms @ np.linalg.pinv(terms))

    def predict(self, works: Sequence[KernelWork]) -> npt.NDArray[np.float64]:
        """Milliseconds of other entries; those of a type and class that was not fitted are left out as NaN."""
        known = [work for work in works if (work.native, work.work) in self.rates]
        result = np.full(len(works), np.nan)
        if known:
            is_known = [(work.native, work.work) in self.rates for work in works]
            result[is_known] = _times_ms(self.parameters, self._columns(known))
        return result

    def _columns(self, works: Sequence[KernelWork]) -> _Columns:
        moved = np.array([_FLOAT_BYTES * (w.read + w.written) + w.weight_bytes for w in works])
        return _Columns(
            np.array([w.macs for w in works], dtype=np.float64),
            np.array([0 if w.work is WorkClass.ELEMENTWISE else w.written for w in works], dtype=np.float64),
            moved,
            np.where(moved <= self.cache_bytes, _CACHE, _DRAM),
            np.array([w.read + w.written if w.is_quantized else 0 for w in works], dtype=np.float64),
            np.array([w.applied for w in works], dtype=np.float64),
            np.array([self.rates[w.native, w.work] for w in works]),
            next(index for (_, work), index in self.rates.items() if work is WorkClass.ELEMENTWISE),
        )


@dataclass(frozen=True, slots=True)
class _Columns:
    macs: npt.NDArray[np.float64]
    results: npt.NDArray[np.float64]
    moved: npt.NDArray[np.float64]
    bandwidth: npt.NDArray[np.int64]
    converted: npt.NDArray[np.float64]
    applied: npt.NDArray[np.float64]
    rate: npt.NDArray[np.int64]
    applied_rate: int


def _times_ms(parameters: npt.NDArray[np.float64], columns: _Columns) -> npt.NDArray[np.float64]:
    """The formula of ``Roofline.op_ms`` where kernels read and write floating point."""
    values = np.exp(parameters)
    compute = (columns.macs + columns.results * values[_RESULT]) / values[columns.rate] / 1e6
    moved = columns.moved / values[columns.bandwidth] / 1e6
    converted = columns.converted / values[_CONVERT] / 1e6
    applied = columns.applied / values[columns.applied_rate] / 1e6
    times: npt.NDArray[np.float64] = np.maximum(compute, moved) + converted + applied + values[_LAUNCH]
    return times


def _errors(fit: _Fit, rows: Sequence[_Row]) -> FitErrors:
    predicted = fit.predict([work for *_, work in rows])
    errors = np.abs(predicted / np.array([time for _, time, _ in rows]) - 1)
    judged = np.flatnonzero(~np.isnan(errors))
    worst = int(judged[np.argmax(errors[judged])])
    median, p90 = np.percentile(errors[judged], [50, 90])
    told = f"{rows[worst][0]}: measured {rows[worst][1]:.4g} ms, predicted {predicted[worst]:.4g} ms"
    return FitErrors(len(judged), float(median), float(p90), told)


def _calibrated(device: Device, fit: _Fit) -> Device:
    values = np.exp(fit.parameters)
    peaks: dict[str, Quantity] = dict(device.peak_gmacs_per_s)
    shares: dict[str, Quantity] = dict(device.utilisation_fraction)
    for native in dict.fromkeys(name for name, _ in fit.rates):
        rates = {work: float(values[index]) for (name, work), index in fit.rates.items() if name == native}
        peak = max(rates.values())
        peaks[native] = _fitted(peak, "largest rate of a class of operations")
        for work, rate in rates.items():
            shares[f"{native}/{work}"] = _fitted(rate / peak, "rate of the class over the largest rate of the type")
        if native not in FLOAT_TYPES:
            share = min(float(values[_CONVERT]) / peak, 1.0)
            shares[f"{native}/{WorkClass.ELEMENTWISE}"] = _fitted(
                share, "inputs quantized and results scaled, over the largest rate"
            )
    cache = _fitted(float(max(values[_CACHE], values[_DRAM])), "kernels that fit the cache, repeated on their operands")
    dram = _fitted(float(values[_DRAM]), "kernels that do not fit the cache")
    size = _fitted(fit.cache_bytes, "the power of two that fits best")
    memory = Memory(dram_gb_per_s=dram, cache_gb_per_s=cache, cache_bytes=size)
    launch = _fitted(float(values[_LAUNCH]) * 1e3, "time of a kernel that is not explained by work")
    results = _fitted(float(values[_RESULT]), "what short sums take longer than long ones")
    return device.with_figures(
        peak_gmacs_per_s=peaks,
        utilisation_fraction=shares,
        memory=memory,
        overhead=device.overhead.model_copy(update={"operation_us": launch, "result_macs": results}),
        sources={**device.sources, _SOURCE: "Latency table of this machine, half of its entries"},
    )


def _fitted(value: float, how: str) -> Quantity:
    return Quantity(value=value, kind=Kind.MEASURED, source=_SOURCE, how=how)
