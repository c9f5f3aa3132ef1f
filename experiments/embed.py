"""Make the embedded default: the trained hybrid and the Fashion-MNIST images that travel with evoquant.

    python experiments/embed.py --data DIR_OF_FASHION_MNIST --checkpoint CHECKPOINTS/mobilevit_micro.safetensors

Calibration and selection images are the first ones of the last tenth of the training set, which `train.py` never
trains on; test images are the first ones of the test set.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from train import HOLDOUT_SHARE, read_idx

COUNTS = {"calibration": 128, "selection": 768, "test": 4000}
TARGET = Path(__file__).parent.parent / "evoquant" / "embedded"


def split(data: Path) -> dict[str, np.ndarray]:
    """The images and labels of every split, by the name they are stored under."""
    train_images = read_idx(data / "train-images-idx3-ubyte.gz")
    train_labels = read_idx(data / "train-labels-idx1-ubyte.gz")
    first = len(train_images) - round(HOLDOUT_SHARE * len(train_images))
    arrays = {}
    for name in ("calibration", "selection"):
        chosen = slice(first, first + COUNTS[name])
        arrays |= {f"{name}_images": train_images[chosen], f"{name}_labels": train_labels[chosen]}
        first += COUNTS[name]
    arrays["test_images"] = read_idx(data / "t10k-images-idx3-ubyte.gz")[: COUNTS["test"]]
    arrays["test_labels"] = read_idx(data / "t10k-labels-idx1-ubyte.gz")[: COUNTS["test"]]
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    arguments = parser.parse_args()
    TARGET.mkdir(exist_ok=True)
    np.savez_compressed(TARGET / "images.npz", **split(arguments.data))
    shutil.copyfile(arguments.checkpoint, TARGET / "mobilevit_micro.safetensors")
    print({path.name: path.stat().st_size for path in sorted(TARGET.iterdir())})


if __name__ == "__main__":
    main()
