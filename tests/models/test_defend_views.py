"""``Defend`` with several views of an image, at test time."""

import pytest
import torch

from anomalib_defend import Defend
from anomalib_defend.models.defend.torch_model import DefendModel
from anomalib_defend.nn.score import anomaly_map
from anomalib_defend.nn.views import LAYOUTS, cut, pixels
from rounding import rounding

SIZE = (32, 48)
LAYOUT = "whole+centre+corners"
ROUNDING = rounding(24)  # two products in each of the twelve blocks of both networks


def build(views, **options):
    torch.manual_seed(0)
    model = DefendModel("vit_digits_patch8_96", SIZE, views=views, **options)
    model.reset_student()
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, *build(LAYOUT).resized_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"score": "attended_distance", "attention_block": 2}])
def test_score_and_map_are_the_smallest_of_the_views(images, options):
    model, plain = build(LAYOUT, **options), build("whole", **options)
    scores, maps = [], torch.full((3, *model.resized_size), torch.inf)
    for box in LAYOUTS[LAYOUT]:
        view = cut(images, box, SIZE)
        scores.append(plain(view).pred_score)
        left, top, right, bottom = pixels(box, model.resized_size)
        own = anomaly_map(plain.distances(view), model.grid, (bottom - top, right - left))[:, 0]
        for image in range(3):
            for row in range(top, bottom):
                for column in range(left, right):
                    here = own[image, row - top, column - left]
                    maps[image, row, column] = torch.minimum(maps[image, row, column], here)
    predictions = model(images)
    expected = torch.tensor([min(float(score[image]) for score in scores) for image in range(3)])
    torch.testing.assert_close(predictions.pred_score, expected, atol=ROUNDING * expected.max().item(), rtol=0)
    torch.testing.assert_close(predictions.anomaly_map[:, 0], maps, atol=1e-5, rtol=1e-5)


def test_one_more_view_never_raises_the_score(images):
    fewer, more = build("whole+centre"), build(LAYOUT)
    assert fewer.resized_size == more.resized_size
    few = fewer(images).pred_score
    assert (more(images).pred_score <= few + ROUNDING * few.max()).all()


def test_the_networks_are_trained_on_whole_images(images):
    model, plain = build(LAYOUT), build("whole")
    whole = cut(images, LAYOUTS[LAYOUT][0], SIZE)
    for step in ("dense_step", "distill_step"):
        losses = []
        for network, inputs in ((model, images), (plain, whole)):
            torch.manual_seed(2)
            result = getattr(network, step)(inputs)
            losses.append(result[0] if step == "dense_step" else result)
        assert torch.equal(*losses), step


def test_images_that_are_not_resized_for_the_views_are_refused(images):
    model = build(LAYOUT)
    for action in (model, model.whole, model.dense_step, model.distill_step):
        with pytest.raises(ValueError, match=r"for image_size=\(32, 48\) and 6 views, which takes \(54, 80\)"):
            action(images[..., :32, :48])


def test_a_picture_says_that_the_score_is_not_the_mean_of_the_map():
    tiny = {"backbone": "vit_digits_patch8_96", "pre_trained": False}
    assert "the score is the best view's" in Defend(**tiny, views=LAYOUT).map_note
    assert not Defend(**tiny).map_note
