"""Deep SVDD: input, losses, centre and score, each by loops over images (``test_every_model.py`` has the rest)."""

import copy
import math

import numpy as np
import pytest
import torch

from anomalib_defend import DeepSVDD
from anomalib_defend.models.deep_svdd.stages import AutoencoderStage, CenterStage
from anomalib_defend.models.deep_svdd.torch_model import DeepSVDDModel, DistantCenter, normalize_contrast


@pytest.fixture
def model() -> DeepSVDDModel:
    torch.manual_seed(0)
    model = DeepSVDDModel((16, 16)).train()
    model.value_range.copy_(torch.tensor([-3.0, 4.0]))
    model.decoder(model.encoder(torch.rand(20, 3, 16, 16)))  # running statistics
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def contrast(image: torch.Tensor) -> np.ndarray:
    """One image's, by its definition, in float64."""
    values = image.double().numpy()
    centred = values - values.mean()
    return centred / np.abs(centred).mean()


def scaled(image: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy((contrast(image) + 3) / 7)


def test_contrast_is_normalised_by_image(images):
    for found, image in zip(normalize_contrast(images), images, strict=True):
        np.testing.assert_allclose(found.numpy(), contrast(image), rtol=1e-5, atol=1e-5)
    assert not normalize_contrast(torch.full((1, 3, 8, 8), 0.3)).abs().gt(0.1).any()  # where the published code has NaN


def test_losses_and_score_are_those_of_loops_in_float64(model, images):
    model.normality.fit(torch.randn(9, 128))
    restored = model.reconstruction_loss(images).item()
    distance, scores = model.center_loss(images).item(), model(images).pred_score
    encoder, decoder, center = model.encoder.double(), model.decoder.double(), model.normality.center.double()
    errors, distances = [], []
    for image in images:
        code = encoder(scaled(image)[None])
        error = decoder(code)[0] - scaled(image)
        errors.append(sum(value**2 for value in error.flatten().tolist()))
        distances.append(sum((a - b) ** 2 for a, b in zip(code[0].tolist(), center.tolist(), strict=True)))
    assert restored == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert distance == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    torch.testing.assert_close(scores.double(), torch.tensor(distances, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_the_center_keeps_away_from_zero():
    center = DistantCenter()
    assert not center.fitted
    features = torch.zeros(4, 128)
    features[:, 1], features[:, 2], features[:, 3] = 0.05, -0.05, torch.tensor([1.0, 2.0, 3.0, 4.0])
    center.fit(features)
    assert center.fitted
    torch.testing.assert_close(center.center[:5], torch.tensor([0.1, 0.1, -0.1, 2.5, 0.1]))


def test_the_networks_are_the_papers():
    model = DeepSVDDModel((32, 32))
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == 520_544
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert [p.shape[0] for p in model.decoder.parameters()] == [8, 128, 64, 32]
    assert model.decoder(torch.zeros(2, 128)).shape == (2, 3, 32, 32)


def test_the_learning_rate_drops_once():
    arguments = {"pretrain_epochs": 350, "epochs": 150, "lr": 1e-4}
    for stage, drop in ((AutoencoderStage, 250), (CenterStage, 50)):
        rate = stage(DeepSVDDModel(), arguments).optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
        assert (rate(drop - 1), rate(drop)) == (1, 0.1)


def test_range_and_center_are_of_all_normal_images(make_data, make_engine, monkeypatch):
    """The centre is that of the encoder between the stages: later its batch norms' statistics are others."""
    networks = []
    enter = CenterStage.enter

    def look(self, run):
        enter(self, run)
        networks.append(copy.deepcopy(self.model).eval())

    monkeypatch.setattr(CenterStage, "enter", look)
    data, model = make_data(), DeepSVDD(16, pretrain_epochs=1, epochs=1, lr=1e-3, seed=0)
    make_engine().fit(model, datamodule=data)
    network = model.eval().model
    images = torch.cat([model.pre_processor(item.image[None]) for item in data.train_data])
    values = [contrast(image) for image in images]
    expected = torch.tensor([min(value.min() for value in values), max(value.max() for value in values)])
    torch.testing.assert_close(network.value_range.double(), expected, rtol=1e-5, atol=1e-5)
    (between,) = networks
    encoder, (low, high) = between.encoder.double(), expected
    inputs = [torch.from_numpy((value - low.item()) / (high - low).item()) for value in values]
    codes = [encoder(image[None])[0].tolist() for image in inputs]
    for component, found in zip(zip(*codes, strict=True), network.normality.center.tolist(), strict=True):
        mean = sum(component) / len(component)
        pushed = math.copysign(max(abs(mean), 0.1), mean)
        assert found == pytest.approx(pushed, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("size", [30, 128, (16, 24)])
def test_a_size_that_does_not_fit_is_refused_with_those_that_do(size):
    with pytest.raises(ValueError, match=r"Sizes that work: 16, 32 \(the paper's\), 64"):
        DeepSVDD(image_size=size)
    with pytest.raises(ValueError, match=r"Images of \(8, 8\) reach a model for image_size=\(32, 32\)"):
        DeepSVDDModel()(torch.zeros(1, 3, 8, 8))
