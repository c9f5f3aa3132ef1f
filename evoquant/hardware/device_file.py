"""Reading device files: the schema of ``Device``, and what the schema cannot say, each problem with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from evoquant.config.validation import validate
from evoquant.config.yaml_loader import KeyPath, Located, load_yaml
from evoquant.errors import ConfigurationError, UnknownNameError, did_you_mean
from evoquant.hardware.device import FLOAT_TYPES, Device, parse_precision
from evoquant.hardware.work import WorkClass
from evoquant.resources import folder
from evoquant.types.target import HardwareTarget


def device_names() -> tuple[str, ...]:
    """Names of the devices whose files are shipped."""
    return tuple(sorted(path.stem for path in folder("hardware_models").glob("*.yaml")))


def load_device(name_or_path: str | Path | HardwareTarget) -> Device:
    """Read a device by its name, by its family (then the device that stands for it), or from a file of the user.

    Args:
        name_or_path: A name of ``device_names()``, a target, or a path (anything with a folder or ending in ``.yaml``).

    Raises:
        UnknownNameError: If no such device is shipped; names the nearest.
        ConfigurationError: If the file breaks the schema: every problem with file and line.
    """
    if isinstance(name_or_path, str) and name_or_path in list(HardwareTarget) and name_or_path not in device_names():
        name_or_path = HardwareTarget(name_or_path)
    if isinstance(name_or_path, HardwareTarget):
        name_or_path = name_or_path.default_device
    path = Path(name_or_path)
    if path.suffix != ".yaml" and len(path.parts) == 1:
        if path.name not in device_names():
            raise UnknownNameError("device", path.name, device_names())
        path = folder("hardware_models") / f"{path.name}.yaml"
    located = load_yaml(path)
    device = validate(Device, located)
    problems = [f"{located.where(key)}: {'.'.join(map(str, key))}: {told}" for key, told in _problems(located, device)]
    if problems:
        raise ConfigurationError(problems)
    return device


def _problems(located: Located, device: Device) -> Iterator[tuple[KeyPath, str]]:
    if located.path is not None and device.name != located.path.stem:
        yield ("name",), f"Must be the name of the file, {located.path.stem!r}, but got {device.name!r}."
    yield from _unknown_sources(located.data, (), device.sources)
    yield from _bad_types(device)
    yield from _bad_classes(device)
    for index, rule in enumerate(device.support):
        if rule.executes is not None and rule.executes not in device.types:
            told = did_you_mean(rule.executes, device.types)
            yield ("support", index, "executes"), f"Unknown native type {rule.executes!r}.{told}"


def _unknown_sources(data: object, path: KeyPath, sources: Mapping[str, str]) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(data, Mapping):
        source = data.get("source")
        if isinstance(source, str) and path and source not in sources:
            yield (*path, "source"), f"Unknown source {source!r}.{did_you_mean(source, sources)}"
        for key, value in data.items():
            if key != "sources":
                yield from _unknown_sources(value, (*path, key), sources)
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _unknown_sources(value, (*path, index), sources)


def _bad_types(device: Device) -> Iterator[tuple[KeyPath, str]]:
    if device.float_type not in device.peak_gmacs_per_s:
        yield ("peak_gmacs_per_s",), f"Has no entry for the float_type {device.float_type!r}."
    for name, quantity in device.peak_gmacs_per_s.items():
        if name not in FLOAT_TYPES:
            try:
                parse_precision(name)
            except ValueError as error:
                yield ("peak_gmacs_per_s", name), f"{error}."
        if quantity.value <= 0:
            yield ("peak_gmacs_per_s", name), "A peak rate must be positive."


def _bad_classes(device: Device) -> Iterator[tuple[KeyPath, str]]:
    for work in WorkClass:
        if work not in device.utilisation_fraction:
            yield ("utilisation_fraction",), f"Has no entry for the class '{work}'."
    for key, quantity in device.utilisation_fraction.items():
        native, _, work_name = key.rpartition("/")
        if work_name not in list(WorkClass) or (native and native not in device.peak_gmacs_per_s):
            yield ("utilisation_fraction", key), "Expected a class, or a native type and a class as in 'w8a8/dense'."
        if not 0 < quantity.value <= 1:
            yield ("utilisation_fraction", key), f"A share lies in (0, 1], but got {quantity.value:g}."
