"""Train the small hybrids that evoquant's experiments quantize.

    python experiments/train.py mobilevit_micro    --data DIR_OF_FASHION_MNIST  --out experiments/checkpoints
    python experiments/train.py mobilevit_xxs      --data cifar10_train.npz     --out experiments/checkpoints
    python experiments/train.py mobilevitv2_050    --data cifar10_train.npz     --out experiments/checkpoints

Fashion-MNIST comes as the four ``*-ubyte.gz`` files of the original distribution (Debian: ``dataset-fashion-mnist``);
CIFAR-10 as an ``.npz`` with ``jpeg`` (concatenated files), ``offsets`` and ``labels``. The last tenth of the training
images is never trained on: calibration and selection images are taken from it.

The recipe: one-cycle learning rate, label smoothing 0.1, random flips and crops, the first 60 % of the CIFAR-10 epochs
at three quarters of the resolution; of the last and the averaged weights those that are better on the images kept out.
A run that is interrupted continues from its last epoch. The result is one safetensors file in float16 and a JSON file
that states the recipe and the accuracy.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evoquant import models

HOLDOUT_SHARE = 0.1


@dataclass(frozen=True)
class Recipe:
    """What one training run needs to know."""

    image_size: int
    epochs: int
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    gradient_norm: float = 5.0
    label_smoothing: float = 0.1
    crop_padding: int = 4
    ema_decay: float = 0.998
    small_share: float = 0.6
    small_scale: float = 0.75
    seed: int = 0


RECIPES = {
    "mobilevit_micro": Recipe(
        image_size=32,
        epochs=16,
        optimizer="adamw",
        learning_rate=3e-3,
        weight_decay=0.05,
        gradient_norm=1.0,
        crop_padding=2,
        small_share=0.0,
    ),
    "mobilevit_xxs": Recipe(image_size=64, epochs=24),
    "mobilevitv2_050": Recipe(image_size=64, epochs=18),
}
_REFINEMENT = Recipe(
    image_size=64,
    epochs=8,
    optimizer="adamw",
    learning_rate=1.5e-3,
    weight_decay=0.02,
    gradient_norm=1.0,
    label_smoothing=0.05,
    small_share=0.0,
    seed=1,
)
REFINEMENTS = {
    "mobilevit_xxs": _REFINEMENT,
    "mobilevitv2_050": replace(_REFINEMENT, epochs=20, learning_rate=2e-3, weight_decay=0.05, seed=3),
}
"""Further cycles that start from a checkpoint."""


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes (the MNIST format)."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_jpegs(path: Path) -> tuple[Tensor, Tensor]:
    """Decode an ``.npz`` of JPEG files to uint8 images of shape (n, 3, height, width) and their labels."""
    with np.load(path) as file:
        data, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
    images = [
        np.asarray(Image.open(io.BytesIO(data[start:stop].tobytes())).convert("RGB"))
        for start, stop in itertools.pairwise(offsets)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(int))


def read_training_images(path: Path) -> tuple[Tensor, Tensor]:
    """Training images and labels of either data set, as it was named on the command line."""
    if path.is_dir():
        images = read_idx(path / "train-images-idx3-ubyte.gz")
        labels = read_idx(path / "train-labels-idx1-ubyte.gz")
        return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(int))
    return read_jpegs(path)


def prepare(images: Tensor, size: int) -> Tensor:
    """Scale uint8 images to [0, 1] and to ``size``, channels last."""
    scaled = images.float().div_(255)
    if scaled.shape[-1] != size:
        scaled = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    return scaled.contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Random horizontal flip and random crop of the zero-padded image, one draw per image."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    offset = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    rows = offset[0] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = offset[1] + torch.where(flip, width - 1 - columns, columns)
    index = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def top1(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
    """Share of images, in percent, whose largest logit is the label."""
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(prepare(image, size)).argmax(1) == label).sum())
            for image, label in zip(images.split(256), labels.split(256), strict=True)
        )
    return 100 * hits / len(images)


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer that the recipe names."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )


def train(
    name: str, recipe: Recipe, images: Tensor, labels: Tensor, state_path: Path, start: Path | None = None
) -> tuple[nn.Module, float]:
    """Train the named model; return it and its top-1 (percent) on the images kept out.

    Args:
        name: Of the model.
        recipe: How.
        images: Of shape (n, channels, height, width), uint8; the last tenth is kept out.
        labels: Of shape (n,).
        state_path: Where the state of an unfinished run is kept.
        start: Checkpoint to begin with; None: random weights.
    """
    torch.manual_seed(recipe.seed)
    kept = round(HOLDOUT_SHARE * len(images))
    kept_images, kept_labels, images, labels = images[-kept:], labels[-kept:], images[:-kept], labels[:-kept]
    model = models.create(name, num_classes=10)
    if start is not None:
        models.load_weights(model, start)
    model = model.to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
    optimizer = build_optimizer(model, recipe)
    steps = len(images) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=steps * recipe.epochs,
        pct_start=0.2,
        cycle_momentum=recipe.optimizer == "adamw",
    )
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise SystemExit(f"{state_path} is of another recipe: delete it, or name another --out")
        first = state["epoch"]
        for key, part in parts.items():
            part.load_state_dict(state[key])
    last = averaged = 0.0
    for epoch in range(first, recipe.epochs):
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
        small = epoch < recipe.small_share * recipe.epochs
        size = int(recipe.image_size * recipe.small_scale) if small else recipe.image_size
        model.train()
        for batch in torch.randperm(len(images), generator=generator)[: steps * recipe.batch_size].view(steps, -1):
            inputs = prepare(augment(images[batch], recipe.crop_padding, generator), size)
            loss = F.cross_entropy(model(inputs), labels[batch], label_smoothing=recipe.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            average.update_parameters(model)
        last = top1(model, kept_images, kept_labels, recipe.image_size)
        averaged = top1(average.module, kept_images, kept_labels, recipe.image_size)
        seconds = time.perf_counter() - started
        progress = f"loss {loss:.3f} top1 {last:.2f} averaged {averaged:.2f} {seconds:.0f}s"
        print(f"{name} epoch {epoch + 1}/{recipe.epochs} {progress}", flush=True)
        state = {"recipe": asdict(recipe), "epoch": epoch + 1}
        torch.save({**state, **{key: part.state_dict() for key, part in parts.items()}}, state_path)
    return (average.module, averaged) if averaged > last else (model, last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--refine", type=Path, help="go on from this checkpoint with a second, shorter cycle")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    arguments = parser.parse_args()
    if arguments.refine is not None and arguments.model not in REFINEMENTS:
        parser.error(f"--refine has a recipe for {', '.join(REFINEMENTS)}, but not for {arguments.model}")
    torch.set_num_threads(arguments.threads)
    recipe = (RECIPES if arguments.refine is None else REFINEMENTS)[arguments.model]
    changes = {"epochs": arguments.epochs, "seed": arguments.seed}
    recipe = replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    images, labels = read_training_images(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = arguments.out / f"{arguments.model}{'' if arguments.refine is None else '.refined'}.training.pt"
    start = None if arguments.refine is None else arguments.refine.with_suffix(".json")
    model, accuracy = train(arguments.model, recipe, images, labels, state, arguments.refine)
    checkpoint = arguments.out / f"{arguments.model}.safetensors"
    half = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    save_file(half, checkpoint)
    model.load_state_dict(load_file(checkpoint))
    report = {
        "model": arguments.model,
        "start": None if start is None else json.loads(start.read_text()),
        "recipe": asdict(recipe),
        "holdout_top1": accuracy,
        "torch": torch.__version__,
    }
    checkpoint.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
