"""Every model of what is normal has one face: ``fit``, ``fitted``, ``forward``, ``reset``, and a state of any size."""

from functools import partial

import pytest
import torch

from anomalib_defend.models.deep_svdd.torch_model import DistantCenter
from anomalib_defend.models.transformaly.torch_model import TwoGaussians
from anomalib_defend.nn.normality import Center, Clusters, Gaussian, NearestNeighbors, Normality

DIM = 6
MAKE = {
    "Center": Center,
    "DistantCenter": DistantCenter,
    "Clusters": partial(Clusters, DIM, 3),
    "Gaussian": partial(Gaussian, DIM),
    "Gaussian of components": partial(Gaussian, DIM, 0.9),
    "TwoGaussians": partial(TwoGaussians, 2, DIM - 2, "both"),
    "NearestNeighbors": partial(NearestNeighbors, DIM, 2),
    "NearestNeighbors, centred": partial(NearestNeighbors, DIM, 2, center=True),
}
every_one = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


def features(number, seed=0, spread=0.1):
    """Near one point, in directions of unequal variance, which fewer features fill less."""
    generator = torch.Generator().manual_seed(seed)
    return 1 + spread * torch.linspace(1, 0.1, DIM) * torch.randn(number, DIM, generator=generator)


def fitted(make, number):
    normality = make()
    normality.fit(features(number))
    return normality


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def subclasses(kind):
    return {kind} | {found for below in kind.__subclasses__() for found in subclasses(below)}


def test_none_is_forgotten():
    kinds = {kind.__name__ for kind in subclasses(Normality) if kind.__module__.startswith("anomalib_defend.")}
    assert kinds - {"Normality"} == {type(make()).__name__ for make in MAKE.values()}


@every_one
def test_novel_images_are_farther_and_each_has_a_distance(make):
    normality = make()
    assert not normality.fitted
    normality.fit(features(40))
    assert normality.fitted
    normal, novel = normality(features(5, seed=1)), normality(-features(7, seed=1))
    assert (normal.shape, novel.shape) == ((5,), (7,))
    assert normal.max() < novel.min()


@every_one
def test_nothing_is_left_of_an_earlier_fit(make):
    normality = fitted(make, 13)
    normality.fit(features(40))
    assert same(normality, fitted(make, 40))
    normality.reset()
    assert not normality.fitted
    normality.fit(features(40))
    assert same(normality, fitted(make, 40))


@every_one
@pytest.mark.parametrize("before", [None, 3, 13])
def test_a_state_of_any_size_is_loaded(make, before):
    source, normality = fitted(make, 40), make() if before is None else fitted(make, before)
    normality.load_state_dict(source.state_dict())
    assert normality.fitted
    assert same(normality, source)
    assert torch.equal(normality(features(5, seed=1)), source(features(5, seed=1)))
