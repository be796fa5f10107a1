"""DN2: which features are compared, and with what (``test_every_model.py`` has the rest)."""

import pytest
import torch
from torch import nn

from anomalib_defend import DN2
from anomalib_defend.models.components.training import PLACEHOLDER
from anomalib_defend.models.dn2.torch_model import DN2Model
from anomalib_defend.nn.vit import patch_tokens

TINY = {"backbone": "vit_digits_patch8_96", "pre_trained": False, "image_size": 32}


@pytest.mark.parametrize("normalize", [True, False])
def test_features_are_the_encoders(normalize):
    images = torch.randn(2, 3, 32, 32)
    cls = DN2Model("vit_digits_patch8_96", (32, 32), normalize=normalize).eval()
    mean = DN2Model("vit_digits_patch8_96", (32, 32), "mean_patch", normalize=normalize).eval()
    mean.load_state_dict(cls.state_dict())
    for model, features in ((cls, cls.encoder(images)), (mean, patch_tokens(mean.encoder, images)[-1].mean(dim=1))):
        expected = torch.nn.functional.normalize(features, dim=-1) if normalize else features
        torch.testing.assert_close(model.encode(images), expected)


def test_a_convolutional_encoder_stays_frozen():
    model = DN2Model("resnet18", (64, 64)).train()
    before = model.encoder.bn1.running_mean.clone()
    features = model.encode(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, 512)
    assert torch.equal(model.encoder.bn1.running_mean, before)
    with pytest.raises(ValueError, match="feature='mean_patch' needs an encoder with patch tokens; backbone="):
        DN2Model("resnet18", (64, 64), "mean_patch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_neighbors": 0}, "num_neighbors=0 must be at least 1"),
        ({"backbone": "vit_no_such"}, "backbone='vit_no_such' is not a timm model"),
        ({"weights": "nowhere.safetensors"}, r"weights='nowhere\.safetensors': no such file"),
    ],
)
def test_wrong_arguments_are_named(make_data, make_engine, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_engine().fit(DN2(**{**TINY, **arguments}), datamodule=make_data())


@pytest.fixture
def trained(make_data, make_engine):
    data, engine, model = make_data(), make_engine(), DN2(**TINY, feature="mean_patch", num_neighbors=3)
    engine.fit(model, datamodule=data)
    return engine, model, data


def test_training_fills_the_memory_once(trained, make_engine):
    engine, model, data = trained
    assert model.model.normality.memory.shape == (len(data.train_data), 96)
    make_engine().fit(model, datamodule=data)
    assert model.model.normality.memory.shape == (len(data.train_data), 96)
    assert engine.trainer.current_epoch == 1


def test_a_failed_training_in_several_processes_leaves_nothing_behind(trained, make_engine):
    """Lightning calls no teardown then; the parameter that DDP has to have would be missing in a checkpoint."""
    engine, model, data = trained
    model.register_parameter(PLACEHOLDER, nn.Parameter(torch.zeros(())))
    make_engine().test(model, datamodule=data, ckpt_path=engine.best_model_path)
    assert not hasattr(model, PLACEHOLDER)
