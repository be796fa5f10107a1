"""The first view first: labels are those of all views, and what it cannot tell is not said."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend import ObjectPrototypes
from anomalib_defend.decision import Calibration, Level
from anomalib_defend.decision.conformal import p_values
from anomalib_defend.decision.table import read_table
from anomalib_defend.scoring.journal import Entry
from anomalib_defend.scoring.judges import MARGIN, FirstViewJudge
from anomalib_defend.scoring.sample import MOST, Sample
from miniatures import write_images

LEVEL = Level(1.0, 0.5, 0.5, tuple(np.linspace(0, 1.2, 40).tolist()))
CALIBRATION = Calibration(0.15, LEVEL)


class Views:
    """Scores images, which are the distances of their views, by some of them, with rounding."""

    batch_size, parallel = 4, 1

    def __init__(self, views: slice, rounding: float = 0.0, calibration: Calibration = CALIBRATION) -> None:
        self.views, self.rounding, self.calibration, self.seen = views, rounding, calibration, 0

    def prepare(self, path):
        return torch.tensor([float(path)])

    def score(self, paths, images):
        self.seen += len(paths)
        batch = ImageBatch(image=torch.zeros(len(paths), 3, 1, 1), image_path=list(paths))
        batch.raw_score = torch.stack(list(images))[:, self.views].amin(1) + self.rounding
        batch.pred_score = torch.from_numpy(self.calibration.image.scaled(batch.raw_score.numpy()))
        batch.pred_label = batch.raw_score > self.calibration.image.threshold
        batch.p_value = torch.from_numpy(p_values(batch.raw_score, LEVEL.normal_scores))
        return batch


ROUNDING = 0.99 * MARGIN * LEVEL.scale  # of each model; a scaled score moves by half as much, and less elsewhere
distances = st.lists(st.floats(0.875, 1.125, width=32) | st.floats(0, 3, width=32), min_size=3, max_size=3)


@given(
    images=st.lists(distances, min_size=1, max_size=6),
    roundings=st.tuples(*2 * [st.floats(-ROUNDING, ROUNDING)]),
)
def test_labels_are_those_of_all_views(images, roundings) -> None:
    first, full = Views(slice(0, 1), roundings[0]), Views(slice(None), roundings[1])
    judge = FirstViewJudge(first, full)
    paths, tensors = [str(index) for index in range(len(images))], [torch.tensor(image) for image in images]
    entries = judge.entries(paths, tensors)
    expected = full.score(paths, tensors)
    assert [entry.row.label for entry in entries] == expected.pred_label.tolist()
    assert [entry.row.path for entry in entries] == paths
    for entry, raw, p_value in zip(entries, expected.raw_score.tolist(), expected.p_value.tolist(), strict=True):
        if entry.upper_bound:
            assert entry.row.raw_score >= raw - 2 * ROUNDING - 1e-6
            assert entry.row.p_value > CALIBRATION.target_fpr
            assert p_value > CALIBRATION.target_fpr
        else:
            assert entry.row.raw_score == raw
            assert entry.row.p_value == p_value


def test_other_views_are_seen_where_the_first_does_not_decide() -> None:
    first, full = Views(slice(0, 1)), Views(slice(None))
    images = [[0.2, 3.0, 3.0], [1.5, 0.1, 2.0], [float("nan"), 0.1, 0.1], [0.999, 0.9, 0.9]]
    entries = FirstViewJudge(first, full).entries(list("abcd"), [torch.tensor(image) for image in images])
    assert [entry.upper_bound for entry in entries] == [True, False, False, False]
    assert (first.seen, full.seen) == (4, 3)


def test_models_that_do_not_belong_together_are_refused() -> None:
    moved = Views(slice(0, 1), calibration=CALIBRATION.moved(0.3))
    with pytest.raises(
        ValueError, match=r"of another model: its threshold.*If one .* calibrate the checkpoint instead"
    ):
        FirstViewJudge(moved, Views(slice(None)))
    with pytest.raises(ValueError, match=r"not the first view of MODEL: 'a' has the score 1\.5"):
        FirstViewJudge(Views(slice(0, 1)), Views(slice(1, None))).entries(["a"], [torch.tensor([1.5, 2.0])])


def test_a_sample_is_random_and_the_same_each_time() -> None:
    def sampled(count):
        sample = Sample()
        for index in range(count):
            sample.add(Entry(SimpleNamespace(path=index, p_value=0.5 if index % 2 else None)))
        return [entry.row.path for entry in sample.entries()]

    assert sampled(20) == list(range(1, 20, 2))
    assert len(sampled(2000)) == MOST
    chosen = sampled(60_000)
    assert len(chosen) == MOST
    assert chosen == sorted(chosen) == sampled(60_000)
    assert all(index % 2 for index in chosen)
    quarters = np.histogram(chosen, 4, (0, 60_000))[0]
    assert abs(quarters - MOST / 4).max() < 4 * np.sqrt(MOST * 3 / 16)  # four standard deviations of a binomial


@pytest.fixture(scope="module")
def exports(objects, tmp_path_factory) -> tuple[Path, Path]:
    first = ObjectPrototypes.load_from_checkpoint(objects.checkpoint, map_location="cpu", views="whole")
    return objects.export, first.to_openvino(tmp_path_factory.mktemp("first"))


@pytest.mark.parametrize("kind", [pytest.param("export", marks=pytest.mark.slow), "checkpoint"])
def test_a_model_and_its_first_view(request, objects, tmp_path, rows, kind, capsys) -> None:
    full, first = request.getfixturevalue("exports") if kind == "export" else (objects.checkpoint, objects.checkpoint)
    write_images(tmp_path / "images", 40)
    options = {"target_fpr": 0.3, **({"hint": "f32"} if kind == "export" else {})}
    expected = rows(full, tmp_path / "images", out="full.csv", **options)
    found = rows(full, tmp_path / "images", first_view=first, **options)
    assert [row.label for row in found] == [row.label for row in expected]
    bounds = [line.rpartition(",")[2] for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert bounds[0] == "upper_bound"
    assert 0 < bounds.count("yes") < 40  # else nothing was tried
    for row, all_views, bound in zip(found, expected, bounds[1:], strict=True):
        assert row.raw_score >= all_views.raw_score - 1e-5
        if bound == "no":
            assert row.raw_score == pytest.approx(all_views.raw_score, abs=1e-5)
    said = capsys.readouterr().out
    assert f"The first view alone decided {bounds.count('yes')} of 40 images" in said
    at_most = sum(row.p_value <= 0.5 for row in expected)
    assert f"{at_most} of 40 p-values are at most 0.5" in said  # all were computed in full: they are no thousand
    assert "of 40 p-values are at most 0.05" in said

    rows(full, tmp_path / "images", out="fdr.csv", first_view=first, target_fpr=0.3, target_fdr=0.5)
    assert "All views of all images are computed: --target-fdr 0.5" in capsys.readouterr().out
    assert "upper_bound" not in (tmp_path / "fdr.csv").read_text()
    most = [min(expected, key=lambda row: row.p_value).path] * 100  # enough novel ones that some are selected
    rows(full, tmp_path / "images", *most, out="low.csv", first_view=first, target_fpr=0.6, target_fdr=0.43)
    assert "upper_bound,selected" in (tmp_path / "low.csv").read_text()
    rows(full, tmp_path / "images", *most, out="all.csv", target_fpr=0.6, target_fdr=0.43)
    chosen = [
        [line.rpartition(",")[2] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("low.csv", "all.csv")
    ]
    assert chosen[0] == chosen[1]
    assert 100 <= chosen[0].count("yes") < 140
    assert len(read_table(tmp_path / "all.csv")) == 140


@pytest.mark.slow
def test_what_has_no_first_view_says_so(objects, dn2, images, rows, tmp_path) -> None:
    with pytest.raises(ValueError, match="no checkpoint of ObjectPrototypes"):
        rows(dn2.checkpoint, *images, first_view=dn2.checkpoint)
    with pytest.raises(ValueError, match="both be checkpoints"):
        rows(objects.export, *images, first_view=objects.checkpoint)
    with pytest.raises(ValueError, match="a picture shows all views"):
        rows(objects.checkpoint, *images, first_view=objects.checkpoint, maps=tmp_path / "maps")
    assert len(rows(objects.checkpoint, *images, first_view=objects.checkpoint)) == len(images)  # nothing was begun
