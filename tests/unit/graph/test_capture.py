import copy

import pytest
import torch
from torch import nn

from evoquant.errors import GraphError
from evoquant.graph import capture

TOLERANCE = 1e-5


def relative_difference(expected, got):
    return ((expected - got).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["convnet", "tiny_vit", "hybrid"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_program_computes_what_the_model_computes(name, batch, request):
    model, captured = request.getfixturevalue(name)
    images = torch.randn(batch, *captured.graph.input_shape[1:])
    with torch.no_grad():
        assert relative_difference(model(images), captured(images)) < TOLERANCE


def test_all_batch_norms_are_folded(convnet):
    _, captured = convnet
    assert captured.batch_norms.folded == 6
    assert captured.batch_norms.remaining == ()
    assert not any(node.kind == "batch_norm" for node in captured.graph.nodes)


def test_graph_has_no_dropout_copies_or_writes(hybrid):
    targets = {str(node.target) for node in hybrid[1].program.graph.nodes if node.op == "call_function"}
    assert not {name for name in targets if name.split(".")[1].endswith("_") or "dropout" in name or "clone" in name}


def test_model_is_not_changed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2))
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    capture(model, (3, 8, 8), name="model")
    assert [module.training for module in model] == [True, True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


class Norms(nn.Module):
    """Batch norms before a pointwise convolution, after a linear layer on tokens, and on a residual sum."""

    def __init__(self, kernel):
        super().__init__()
        self.early = nn.BatchNorm2d(3)
        self.first = nn.Conv2d(3, 6, kernel, padding=kernel // 2)
        self.tokens = nn.Linear(6, 6)
        self.late = nn.BatchNorm1d(6)

    def forward(self, x):
        x = self.first(self.early(x)).flatten(2).transpose(1, 2)
        return self.late(self.tokens(x).flatten(0, 1)).reshape_as(x).mean(1)


@pytest.mark.parametrize(("kernel", "remaining"), [(1, 0), (3, 1)])
def test_norm_before_a_convolution_folds_only_without_padding(kernel, remaining, capture_small):
    torch.manual_seed(1)
    model = Norms(kernel).eval()
    for norm in (model.early, model.late):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    captured = capture_small(model)
    assert len(captured.batch_norms.remaining) == remaining
    assert captured.batch_norms.folded == 2 - remaining
    assert captured.batch_norms.elements == 64 * (3 + 6)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert relative_difference(model(images), captured(images)) < TOLERANCE


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry = nn.Conv2d(3, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(self.again(torch.relu(self.again(self.entry(x)))).mean((2, 3)))


def test_module_called_twice_has_two_names_and_one_gene(capture_small):
    captured = capture_small(Shared())
    assert [op.name for op in captured.graph.ops] == ["entry", "again", "again#1", "classifier"]
    assert captured.graph.op["again"].group == captured.graph.op["again#1"].group
    assert captured.weight("again").data_ptr() == captured.weight("again#1").data_ptr()


def test_clone_shares_weights_until_they_are_replaced(convnet):
    _, captured = convnet
    images = torch.randn(2, 3, 16, 16)
    before = captured(images)
    clone = captured.clone()
    assert all(clone.weight(op.name) is captured.weight(op.name) for op in captured.graph.ops)
    clone.set_weight("classifier", torch.zeros(5, 8))
    clone.set_bias("classifier", torch.arange(5.0))
    assert torch.equal(clone(images), torch.arange(5.0).expand(2, 5))
    assert torch.equal(captured(images), before)


def test_bias_can_be_added(hybrid):
    clone = hybrid[1].clone()
    images = torch.randn(2, 3, 16, 16)
    before = clone(images)
    assert clone.bias("body.1.widen") is None
    clone.set_bias("body.1.widen", torch.zeros(8))
    assert torch.equal(clone.bias("body.1.widen"), torch.zeros(8))
    assert relative_difference(before, clone(images)) < TOLERANCE
    clone.set_bias("body.1.widen", torch.ones(8))
    assert relative_difference(before, clone(images)) > TOLERANCE
    assert hybrid[1].bias("body.1.widen") is None


def test_nodes_of_a_clone_can_be_edited_alone(tiny_vit):
    _, captured = tiny_vit
    clone = captured.clone()
    node = clone.node("last")
    assert node.name == captured.graph.op["last"].node
    assert [source.name for source in node.all_input_nodes if source.op != "get_attr"] == list(
        captured.graph.op["last"].inputs
    )
    with clone.program.graph.inserting_after(node):
        doubled = clone.program.graph.call_function(torch.ops.aten.mul.Tensor, (node, 2.0))
    node.replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)
    clone.program.recompile()
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(clone(images), 2 * captured(images))


def test_weights_are_refused_with_the_reason(tiny_vit):
    clone = tiny_vit[1].clone()
    with pytest.raises(GraphError, match=r"'last' takes shape \(7, 12\), but got a tensor of shape \(7, 11\)"):
        clone.set_weight("last", torch.zeros(7, 11))
    with pytest.raises(GraphError, match=r"qk' takes no stored tensor"):
        clone.set_weight("layers.0.mixer.qk", torch.zeros(1))
    with pytest.raises(GraphError, match="has no operation 'nothing'"):
        clone.weight("nothing")
    assert clone.weight("layers.0.mixer.qk") is None


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.layer(x).mean((2, 3)) if x.sum() > 0 else x.mean((2, 3))


class FixedBatch(Branching):
    def forward(self, x):
        return self.layer(x).reshape(len(x), -1)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.layer(x).mean((2, 3)) + torch.rand(x.shape[0], 4)


class TwoOutputs(Branching):
    def forward(self, x):
        return x, self.layer(x)


class Dynamic(Branching):
    def forward(self, x):
        return nn.functional.conv2d(x, self.layer.weight * x.mean()).mean((2, 3))


class Gram(Branching):
    def forward(self, x):
        features = self.layer(x).flatten(2)
        return (features @ features.transpose(1, 2)).flatten(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), "cannot be captured for inputs of shape (.|\\n)*branch in Python"),
        (FixedBatch(), "fixes the batch size.*use x.shape"),
        (Noisy(), "differs from the model by .* evaluation is random"),
        (TwoOutputs(), "must return one tensor of logits, but returns tuple"),
        (Dynamic(), "computed from the image"),
        (Gram(), "has no role: no softmax and no second product"),
        (nn.Flatten(), "nothing to quantize"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Flatten()), "conv_transpose2d.*cannot be quantized"),
        (nn.Conv2d(5, 4, 1), r"does not run on images of shape \(3, 3, 8, 8\).*\n?.*"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_that_cannot_be_captured_say_why(model, message, capture_small):
    with pytest.raises(GraphError, match=message):
        capture_small(model)


def test_output_that_is_not_finite_is_refused(capture_small):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(GraphError, match="not finite"):
        capture_small(model)
