"""The program that chooses views: its rule by hand, its scores those of the model, and a run on miniatures."""

import sys

import pytest
import torch

from anomalib_defend import SemanticVOC
from anomalib_defend.models.object_prototypes.torch_model import ObjectPrototypesModel
from anomalib_defend.nn.encoder import data_config
from encoders import MINIATURE
from measurements import layouts
from measurements.layouts import CHOICES, ONE_VIEW, Choice, Features, choose, scored
from rounding import rounding

CENTRE = Choice(0.6, "whole+centre", "smallest", "whole")
CORNERS = Choice(0.6, "whole+corners", "smallest", "whole")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ObjectPrototypesModel(MINIATURE, data_config(MINIATURE).image_size, views="whole")


def test_passes():
    assert {choice.layout: choice.passes for choice in CHOICES} == {
        "whole": 1, "whole+centre": 2, "whole+corners": 5, "whole+centre+corners": 6,
    }  # fmt: skip
    assert CENTRE.training_passes == ONE_VIEW.training_passes == 1
    assert CORNERS._replace(prototypes="nearest").training_passes == 5
    assert len(set(CHOICES)) == 1 + 3 * 3 * 2 * 3


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({CENTRE: [0.02, 0.01], CORNERS: [0.03, 0.02]}, CORNERS),
        ({CENTRE: [0.02, 0.01], CORNERS: [0.0229, 0.0129]}, CENTRE),  # less than 0.003 behind
        ({CENTRE: [0.02, 0.01], CORNERS: [0.09, -0.001]}, CENTRE),  # behind one view in a group
        ({CENTRE: [0.02, -0.01], CORNERS: [0.09, -0.001]}, ONE_VIEW),
        ({CENTRE: [0.002, 0.002]}, ONE_VIEW),
        ({CENTRE: [0.02, 0.01], CENTRE._replace(prototypes="all"): [0.021, 0.011]}, CENTRE),
        ({CENTRE: [0.02, 0.01], CENTRE._replace(score="sum"): [0.021, 0.011]}, CENTRE._replace(score="sum")),
    ],
)
def test_the_rule(gains, expected):
    assert choose({ONE_VIEW: [0.0, 0.0], **gains}) == expected


def test_scores_by_hand():
    distances = torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 2.0]])
    assert scored(distances, "smallest").tolist() == [1, 1]
    assert scored(distances, "sum").tolist() == [4, 2]


def test_prototypes_of_the_nearest_view_and_of_all():
    torch.manual_seed(0)
    kind, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    whole = kind + 0.1 * torch.randn(16, 3)
    train = torch.stack([whole, torch.where(torch.arange(16)[:, None] % 2 == 0, kind, other)], dim=1)
    seen = {of: layouts.prototypes(train, of, 1) for of in ("whole", "nearest", "all")}
    queries = torch.stack([kind, other])
    near = {of: clusters(queries).tolist() for of, clusters in seen.items()}
    assert near["nearest"][0] < near["whole"][0]  # of every other image the view that shows the kind alone
    assert near["all"][1] < min(near["whole"][1], near["nearest"][1])  # the other views are normal, too


def test_the_default_of_the_model_is_scored_as_the_model_does(model, voc):
    data = SemanticVOC(voc, category="dog", num_workers=0, seed=0)
    data.setup()
    features = Features(model, data_config(MINIATURE))
    train, test = features.of(data.train_data), features.of(data.test_data)
    own = ObjectPrototypesModel(MINIATURE, model.image_size, views="whole+centre", num_prototypes=2)
    own.encoder = model.encoder

    def images(dataset):
        prepare = features._prepare[0.6].transform
        return torch.stack([prepare(dataset[index].image) for index in range(len(dataset))])

    with torch.autocast("cpu", torch.bfloat16):
        own.normality.fit(own.encode(images(data.train_data)))
        expected = own(images(data.test_data)).pred_score
    tolerance = rounding(24) * expected.max().item()
    found = layouts.scores(CENTRE._replace(score="sum"), train, test, 2) / 2  # the model has the mean
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_a_file_is_seen_once(model, voc, monkeypatch):
    looked = []
    look = Features._look
    monkeypatch.setattr(Features, "_look", lambda self, images: looked.append(len(images)) or look(self, images))
    features = Features(model, data_config(MINIATURE))
    for category in ("dog", "cat"):
        data = SemanticVOC(voc, category=category, num_workers=0, seed=0)
        data.setup()
        features.of(data.test_data)
    assert looked == [len(data.test_data)]


def test_the_program(model, write, tmp_path, monkeypatch, capsys):
    weights = tmp_path / "encoder.pth"
    torch.save(model.encoder.state_dict(), weights)
    cells = {
        "VOC uni-class": ("voc", "uni_class", [["cat", "dog"], "person"]),
        "CIFAR-10 uni-class": ("cifar10", "uni_class", ["bird"]),
        "Fashion-MNIST uni-class": ("fashion_mnist", "uni_class", [1]),
    }
    monkeypatch.setattr(layouts, "CELLS", cells)
    monkeypatch.setattr(layouts, "TEST_IMAGES", 10)
    roots = {"--voc": write("SemanticVOC"), "--cifar10": write("SemanticCIFAR10")}
    options = [str(value) for option in roots.items() for value in option]
    monkeypatch.setattr(sys, "argv", ["layouts", "--backbone", MINIATURE, "--weights", str(weights), *options])
    layouts.main()
    printed = capsys.readouterr().out.splitlines()
    (plan,) = [line for line in printed if line.startswith("3 cells, ")]
    assert "in 19 views" in plan
    header, _, one, *rows = (line.strip("|").split("|") for line in printed if line.startswith("|"))
    assert [name.strip() for name in header[-3:]] == ["VOC uni-class", "CIFAR-10 uni-class", "mean"]
    assert len(rows) == len(CHOICES) - 1
    assert all(0 <= float(value) <= 1 for value in one[-3:-1])
    for row in rows:
        assert float(row[-1]) == pytest.approx((float(row[-3]) + float(row[-2])) / 2, abs=1e-3)
    assert printed[-1].startswith("Chosen: ")
