import pytest
import torch
from torch import nn

from evoquant.calibrate.fisher import TEMPERATURE
from evoquant.calibrate.importance import position_importance
from evoquant.calibrate.moments import collect_moments
from evoquant.calibrate.output_error import ErrorAccumulator
from evoquant.graph import capture


class ReadsTheFirstToken(nn.Module):
    """Patches as tokens, a layer for all of them, and classes from the first one."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        tokens = torch.relu(self.layer(self.stem(x).flatten(2).transpose(1, 2)))
        return self.head(tokens[:, 0])


class Windows(nn.Module):
    """Quarters of the image beside the images on axis 0, as local attention has them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        n, c, h, w = x.shape
        windows = x.reshape(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(n * 4, h * w // 4, c)
        return self.head(torch.relu(self.layer(windows)).reshape(n, h * w, -1).mean(1))


def images(count=8, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def first_token():
    torch.manual_seed(0)
    model = ReadsTheFirstToken().eval()
    with torch.no_grad():
        model.head.weight *= 20.0  # some images are certain, others are not
    return capture(model, (3, 8, 8), name="first_token")


def test_only_what_is_read_matters(first_token):
    found = position_importance(first_token, [images()], 1.0)
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "stem": (8, 2, 2),
        "layer": (8, 4),
        "head": (8, 1),
    }
    assert not found["layer"][:, 1:].any()
    assert not found["stem"].flatten(1)[:, 1:].any()
    for values in found.values():
        assert float(values.mean()) == pytest.approx(1.0, abs=1e-5)


def test_the_rest_of_the_share_is_equal(first_token):
    whole, part = (position_importance(first_token, [images()], share) for share in (1.0, 0.25))
    for name, values in part.items():
        torch.testing.assert_close(values, 0.75 + 0.25 * whole[name])
    assert position_importance(first_token, [images()], 0.0) == {}


def test_a_position_counts_with_the_divergence_that_its_error_brings(first_token):
    """The mean over many draws of the first token, against small errors of it, image by image."""
    batch, error = images(64, seed=2), 0.02
    draws = [position_importance(first_token, [batch], 1.0, seed=seed)["head"][:, 0] for seed in range(40)]
    logits = first_token(batch) / TEMPERATURE
    moved = logits[:, None, :] + error * torch.eye(5) / TEMPERATURE
    log_p = logits.log_softmax(1)[:, None, :]
    divergence = (log_p.exp() * (log_p - moved.log_softmax(2))).sum(2).sum(1)
    found = torch.stack(draws).mean(0)
    assert float(divergence.max()) > 2.0 * float(divergence.min())
    assert float(torch.corrcoef(torch.stack([found, divergence]))[0, 1]) > 0.8


def test_windows_belong_to_their_image():
    torch.manual_seed(0)
    model = capture(Windows().eval(), (3, 8, 8), name="windows")
    batch = images()
    importance = position_importance(model, [batch], 0.5)
    assert importance["layer"].shape == (8, 64)
    moments = collect_moments(model.program, model.graph, torch.split(batch, 3), importance=importance)
    pixels = batch.reshape(8, 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(8, 64, 3)
    fitted = (torch.arange(8) + 1) % 4 != 0
    weights = importance["layer"][fitted][:, :, None]
    expected = torch.einsum("npa,npb->ab", weights * pixels[fitted], pixels[fitted]) / weights.sum()
    torch.testing.assert_close(moments["layer"].fitted.second[0], expected, rtol=1e-4, atol=1e-5)
    mean = (weights * pixels[fitted]).sum((0, 1)) / weights.sum()
    torch.testing.assert_close(moments["layer"].fitted.mean[0], mean, rtol=1e-4, atol=1e-5)


def test_the_error_of_a_convolution_is_a_weighted_mean(first_token):
    op, batch = first_token.graph.op["stem"], images()
    importance = position_importance(first_token, [batch], 0.5)["stem"]
    change = 0.1 * torch.randn(op.weight_shape, generator=torch.Generator().manual_seed(5))
    residual = torch.randn(8, 6, 2, 2, generator=torch.Generator().manual_seed(6))
    sums = ErrorAccumulator(op)
    for part in (slice(0, 3), slice(3, 8)):
        sums.update(batch[part], residual[part], importance[part])
    left = residual - nn.functional.conv2d(batch, change, stride=4)
    expected = (left.square() * importance[:, None]).sum((0, 2, 3)) / importance.sum()
    found = sums.finish().of(change.reshape(1, 6, -1)).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
