"""Adam with rates that fall to zero along a cosine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.99)
"""Decay of the two moments: steps are few."""


def descend(groups: list[dict[str, Any]], steps: int, loss: Callable[[], Tensor]) -> None:
    """Lessen a loss.

    Args:
        groups: Parameters with their first rate, as optimizers of torch take them.
        steps: How many.
        loss: Computes the loss of the next step.
    """
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with torch.enable_grad():
        for _ in range(steps):
            found = loss()
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
