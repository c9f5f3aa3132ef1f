"""Families of hardware that a search can aim at; each has one or more devices in ``hardware_models``."""

from __future__ import annotations

from enum import StrEnum


class HardwareTarget(StrEnum):
    """A family of devices that execute alike; ``default_device`` is the one that stands for it."""

    HOST_CPU = "host_cpu"
    ARM_NEON = "arm_neon"
    ARM_DOT = "arm_dot"
    QUALCOMM_HEXAGON = "qualcomm_hexagon"
    APPLE_NEURAL_ENGINE = "apple_neural_engine"
    NVIDIA_TENSORRT = "nvidia_tensorrt"
    INTEL_VNNI = "intel_vnni"
    EDGE_TPU = "edge_tpu"

    @property
    def default_device(self) -> str:
        """Name of the device file that is meant when only the family is named."""
        return _DEFAULT_DEVICE[self]


_DEFAULT_DEVICE = {
    HardwareTarget.HOST_CPU: "host_cpu",
    HardwareTarget.ARM_NEON: "raspberry_pi_4",
    HardwareTarget.ARM_DOT: "raspberry_pi_5",
    HardwareTarget.QUALCOMM_HEXAGON: "snapdragon_8_gen_3",
    HardwareTarget.APPLE_NEURAL_ENGINE: "apple_a17_pro",
    HardwareTarget.NVIDIA_TENSORRT: "jetson_agx_orin",
    HardwareTarget.INTEL_VNNI: "xeon_vnni",
    HardwareTarget.EDGE_TPU: "edge_tpu",
}
