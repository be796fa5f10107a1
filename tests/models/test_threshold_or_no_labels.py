"""An export has a threshold, or it says no labels: whatever post-processes, and however it was validated."""

from itertools import count
from pathlib import Path

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.post_processing import PostProcessor
from every_model import ROWS, make_data, make_engine
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.post_processing import NormalQuantilePostProcessor

IMAGES = torch.rand(4, 3, 40, 36, generator=torch.Generator().manual_seed(0))
numbers = count()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("threshold")
    model = next(row for row in ROWS if row.name == "MeanFeature").build()
    make_engine(folder).fit(model, datamodule=make_data(folder / "images"))
    return model.eval(), folder


def validated(processor, scores: list[float]):
    """After a validation of normal images with these scores, if there are any."""
    if scores:
        normal = torch.zeros(len(scores)).bool()
        batch = ImageBatch(image=torch.zeros(len(scores), 3, 4, 4), pred_score=torch.tensor(scores), gt_label=normal)
        processor.on_validation_batch_end(None, None, batch)
    processor.on_validation_epoch_end(None, None)
    return processor


@given(
    kind=st.sampled_from([NormalQuantilePostProcessor, PostProcessor]),
    scores=st.lists(st.floats(0, 2, width=32), max_size=5),
    options=st.fixed_dictionaries(
        {}, optional={"enable_thresholding": st.booleans(), "image_sensitivity": st.floats(0.1, 0.9)}
    ),
)
def test_an_export_labels_by_a_threshold_or_not_at_all(trained, kind, scores, options) -> None:
    model, folder = trained
    labels = options.get("enable_thresholding", True)
    model.post_processor = validated(kind(**options), scores)
    export = Path(folder, "exports", str(next(numbers)))
    if labels and not scores:
        with pytest.raises(RuntimeError, match="there is no threshold to label images by"):
            model.to_torch(export)
        assert not [path for path in export.rglob("*") if path.is_file()]
        return
    file = model.to_torch(export)
    with torch.inference_mode():
        found = torch.load(file, weights_only=False)["model"](IMAGES)
        raw = model.model(model.pre_processor(IMAGES)).pred_score
    file.unlink()
    assert found.pred_score.isfinite().all()
    assert (found.pred_label is not None) == labels
    if labels and "image_sensitivity" not in options:
        assert torch.equal(found.pred_label, raw > model.post_processor.image_threshold)
