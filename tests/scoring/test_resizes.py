"""An exported graph without its resizes says the same of images that need none."""

import numpy as np
import pytest
import torch

from anomalib_defend import ObjectPrototypes
from anomalib_defend.decision.models import Export
from anomalib_defend.scoring import exported
from anomalib_defend.scoring.exported import ExportedScorer

FIRST_VIEW = pytest.param("first view", marks=pytest.mark.slow)  # one more export


@pytest.fixture(scope="session")
def first_view(objects, tmp_path_factory):
    pytest.importorskip("openvino")
    model = ObjectPrototypes.load_from_checkpoint(objects.checkpoint, views="whole", map_location="cpu")
    return model.to_openvino(tmp_path_factory.mktemp("first"))


def exported_model(request, name):
    return request.getfixturevalue("first_view") if name == "first view" else request.getfixturevalue(name).export


def scorer(path, maps=False):
    export = Export(path)
    return ExportedScorer(export, export.calibration(), "f32", maps=maps, parallel=1)


def products(scorer):
    """How many products of matrices its graph has."""
    nodes = scorer._requests.get().get_compiled_model().get_runtime_model().get_ops()
    return sum(node.get_rt_info()["layerType"].astype(str) in {"MatMul", "FullyConnected"} for node in nodes)


@pytest.mark.parametrize("maps", [False, True], ids=["scores", "maps"])
@pytest.mark.parametrize("name", ["dn2", "objects", FIRST_VIEW])
def test_the_graph_without_them_says_the_same(request, name, maps, images, monkeypatch) -> None:
    path = exported_model(request, name)
    shorter = scorer(path, maps)
    monkeypatch.setattr(exported, "without_resizes", lambda model, size, same_size: (model, None))
    whole = scorer(path, maps)
    assert shorter.size == whole.size
    found, expected = (each.score(images, [each.prepare(image) for image in images]) for each in (shorter, whole))
    assert found.raw_score.std() > 1e-3  # it tells the images apart
    torch.testing.assert_close(found.raw_score, expected.raw_score, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.pred_label, expected.pred_label)
    if maps and expected.anomaly_map is not None:
        torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "inner"),
    [("dn2", (32, 32), None), pytest.param("first view", (54, 54), (32, 32), marks=pytest.mark.slow)],
)
def test_they_are_left_out(request, name, size, inner, monkeypatch) -> None:
    made = scorer(exported_model(request, name))
    assert (made.size, made._inner) == (size, inner)
    monkeypatch.setattr(exported, "without_resizes", lambda model, size, same_size: (model, None))
    whole = scorer(exported_model(request, name))
    assert products(whole) - products(made) == (4 if inner else 2)
