"""A packed model survives its folder; a folder that is none, or is damaged, says so."""

import json

import pytest
import torch

from evoquant.deploy import load_packed, save_packed
from evoquant.deploy.folder import DESCRIPTION, TENSORS, file_bytes
from evoquant.errors import ConfigurationError, ModelError
from evoquant.types import QuantizationScheme


@pytest.fixture
def packed(hybrid):
    plan = hybrid.plan(weight_bits=4, weight_scheme=QuantizationScheme.LOG2)
    return hybrid.pack(plan)


@pytest.fixture
def folder(packed, tmp_path):
    return save_packed(packed, tmp_path / "model")


def test_a_model_that_is_read_back_gives_the_same_bits(packed, folder, hybrid):
    again = load_packed(folder)
    torch.testing.assert_close(again(hybrid.images), packed(hybrid.images), rtol=0, atol=0)
    assert again.plan == packed.plan
    assert json.dumps(again.recipe.to_dict()) == json.dumps(packed.recipe.to_dict())
    assert again.recipe.stored_bytes == packed.recipe.stored_bytes


def test_weights_are_stored_in_their_own_bits(packed, folder):
    weights = sum(weight.stored_bytes for weight in packed.recipe.weights.values())
    scales = sum(weight.tensors["scale"].nbytes for weight in packed.recipe.weights.values())
    values = sum(weight.tensors["weight"].nbytes for weight in packed.recipe.weights.values())
    count = sum(torch.Size(weight.shape).numel() for weight in packed.recipe.weights.values())
    assert weights == scales + values
    assert count / 2 <= values <= count / 2 + sum(weight.shape[0] for weight in packed.recipe.weights.values())
    assert file_bytes(folder)[TENSORS] > weights


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no such file. Give a folder that 'evoquant export' has written"):
        load_packed(tmp_path)
    (tmp_path / DESCRIPTION).write_text('{"format": "other"}')
    with pytest.raises(ConfigurationError, match="is not the description of a packed model"):
        load_packed(tmp_path)
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_packed(tmp_path)


def test_damaged_tensors_are_refused(folder):
    file = folder / TENSORS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="damaged or belongs to another model"):
        load_packed(folder)
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load_packed(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("steps"),
        lambda d: d["steps"][0].update(kind="unheard"),
        lambda d: d["steps"][0]["reads"]["x"].update(offset=10**9),
        lambda d: d["steps"][0]["reads"]["x"].update(buffer=10**6),
        lambda d: d.update(weight_shapes={"head": [7, 16]}),
        lambda d: d["plan"].update(head={"weight_bits": 9}),
        lambda d: d["buffers"].clear(),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, change):
    file = folder / DESCRIPTION
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))
    with pytest.raises((ModelError, ValueError)) as caught:
        load_packed(folder)
    assert type(caught.value).__module__.startswith("evoquant")


def test_another_version_is_refused(folder):
    file = folder / DESCRIPTION
    file.write_text(file.read_text().replace('"schema_version":1', '"schema_version":7'))
    with pytest.raises(ConfigurationError, match="expected schema_version 1, but got 7"):
        load_packed(folder)
