import pytest
import torch
from safetensors.torch import save_file

from evoquant.cli.options import unweighted
from evoquant.config import ArchitectureSpec, ModelChanges
from evoquant.errors import ConfigurationError
from evoquant.evaluate import load_model
from evoquant.models import create

VIT = "vit_tiny_patch16_224"


def with_model(experiment, **changes):
    return experiment.model_copy(update={"model": experiment.model.model_copy(update=changes)})


def test_a_vit_of_another_resolution_has_its_position_embedding_resampled(tmp_path):
    weights = {name: value.contiguous() for name, value in create(VIT).state_dict().items()}
    file = tmp_path / "vit.safetensors"
    save_file(weights, file)
    experiment = with_model(unweighted(VIT), checkpoint=file)
    small = load_model(with_model(experiment, image_size=160))
    assert small.pos_embed.shape[1] == 1 + (160 // 16) ** 2
    assert torch.equal(small.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    with torch.inference_mode():
        assert small(torch.zeros(2, 3, 160, 160)).shape == (2, 1000)
    same = load_model(with_model(experiment, image_size=224))
    assert torch.equal(same.pos_embed, weights["pos_embed"])


def test_a_model_is_that_of_one_architecture():
    experiment = unweighted("mobilevit_micro")
    several = (ArchitectureSpec(name="a"), ArchitectureSpec(name="b", model=ModelChanges(image_size=24)))
    with pytest.raises(ConfigurationError, match="several architectures: a, b"):
        load_model(experiment.model_copy(update={"architectures": several}))
