"""The mean of the normal images."""

import torch

from anomalib_defend.nn.normality import Center


def test_distance_to_the_mean():
    center = Center()
    assert not center.fitted
    center.fit(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert center.fitted
    assert center.center.tolist() == [2.0, 4.0]
    assert center(torch.tensor([[2.0, 4.0], [5.0, 0.0]])).tolist() == [0.0, 25.0]


def test_it_is_saved_and_loaded_and_forgotten():
    center, other = Center(), Center()
    center.fit(torch.rand(7, 3))
    other.load_state_dict(center.state_dict())
    assert torch.equal(other.center, center.center)
    other.reset()
    assert not other.fitted


def test_the_mean_of_many_large_features_is_exact():
    features = torch.full((100_001, 1), 1000.25)
    center = Center()
    center.fit(features)
    assert center.center.item() == 1000.25
