"""Building models: every timm name, and the small hybrid that ships with evoquant.

This is the one module that imports timm. timm imports torchvision, whose registry wheel is built against CUDA: beside
a CPU build of torch its import fails for want of two operator schemas, which are declared here only in that case.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from evoquant.errors import ModelError, UnknownNameError
from evoquant.types.images import DataConfig


def _import_timm() -> None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            _SCHEMAS.define(  # type: ignore[no-untyped-call]
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
_import_timm()

import timm  # noqa: E402
from timm.data import resolve_data_config  # noqa: E402
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg  # noqa: E402

EMBEDDED_MODEL = "mobilevit_micro"


def _inverted_residual(depth: int, channels: int, stride: int) -> ByoBlockCfg:
    return ByoBlockCfg(
        type="bottle", d=depth, c=channels, s=stride, gs=1, br=2.0, block_kwargs={"bottle_in": True, "linear_out": True}
    )


def _mobilevit_stage(channels: int, stride: int, dim: int, depth: int) -> tuple[ByoBlockCfg, ...]:
    return (
        _inverted_residual(1, channels, stride),
        ByoBlockCfg(
            type="mobilevit",
            d=1,
            c=channels,
            s=1,
            block_kwargs={"transformer_dim": dim, "transformer_depth": depth, "patch_size": 2},
        ),
    )


def mobilevit_micro(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """A MobileViT of under half a million parameters for images of 1x32x32.

    The layout is timm's ``mobilevit_xxs`` (stem, inverted residuals, MobileViT blocks, 1x1 convolution, head) with
    fewer stages, so that every role of a hybrid occurs and one image costs a few million MACs.
    """
    config = ByoModelCfg(
        blocks=(
            _inverted_residual(1, 16, 1),
            _inverted_residual(2, 32, 2),
            _mobilevit_stage(48, 1, 64, 2),
            _mobilevit_stage(64, 2, 80, 2),
        ),
        stem_chs=16,
        stem_type="3x3",
        stem_pool="",
        downsample="",
        act_layer="silu",
        num_features=192,
    )
    model: nn.Module = ByobNet(config, num_classes=num_classes, in_chans=in_chans, img_size=32)
    model.pretrained_cfg = {  # type: ignore[assignment]
        "input_size": (in_chans, 32, 32),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": (0.0,) * in_chans,
        "std": (1.0,) * in_chans,
    }
    return model


def data_config(model: nn.Module) -> DataConfig:
    """How the model wants its images, by its ``pretrained_cfg``.

    Raises:
        ModelError: If it has none, or wants a crop that is neither centred nor squashed.
    """
    if not getattr(model, "pretrained_cfg", None):
        raise ModelError(
            f"{type(model).__name__} does not say how its images are prepared (it has no pretrained_cfg, as models of "
            "timm have). Pass a DataConfig, or images as tensors."
        )
    found = resolve_data_config(model=model)
    if found["crop_mode"] not in ("center", "squash"):
        raise ModelError(f"{type(model).__name__}: crop_mode '{found['crop_mode']}' is not supported; pass tensors.")
    return DataConfig(
        input_size=tuple(found["input_size"]),
        interpolation=found["interpolation"],
        crop_pct=found["crop_pct"],
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        crop_mode=found["crop_mode"],
    )


def create(name: str, *, num_classes: int | None = None, pretrained: bool = False) -> nn.Module:
    """Build the named model; ``mobilevit_micro`` is ours, every other name is timm's.

    Raises:
        UnknownNameError: If neither knows the name; the message has the nearest one.
    """
    if name == EMBEDDED_MODEL:
        return mobilevit_micro(num_classes or 10)
    if not timm.is_model(name.partition(".")[0]):
        raise UnknownNameError("model", name, [EMBEDDED_MODEL, *_nearest(name)])
    options = {} if num_classes is None else {"num_classes": num_classes}
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    return model


def _nearest(name: str) -> list[str]:
    return difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file of timm key names into the model, which stays in float32.

    Raises:
        ModelError: If the file is missing or unreadable, or if names or shapes do not fit; all differences are counted
            and the first ones named.
    """
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such checkpoint. Give the path of a safetensors file.") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors: {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    problems = [f"missing {name} {expected[name]}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name} {found[name]}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {found[name]}, but the model has {expected[name]}"
        for name in expected.keys() & found.keys()
        if expected[name] != found[name]
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:8])
        raise ModelError(
            f"{path}: the weights do not fit the model, {len(problems)} differences:\n  {shown}\n"
            "Check model.name and model.num_classes."
        )
    model.load_state_dict(weights)
