"""What holds for every datamodule, setting and kind of novel image."""

from pathlib import Path

import pytest

import anomalib_defend.data
import miniatures
from anomalib_defend.data import SemanticFolder

CATEGORY = {
    "SemanticVOC": "dog",
    "SemanticCOCO": "dog",
    "SemanticCIFAR10": ["cat", "dog"],
    "SemanticCIFAR100": "people",
    "SemanticMNIST": 8,
    "SemanticFashionMNIST": "Sneaker",
    "SemanticFolder": "dog",
}
PARTS = ("train_data", "val_data", "test_data")

everywhere = pytest.mark.parametrize("name", miniatures.WRITERS)


def prepared(name, root, **options):
    options = {"category": CATEGORY[name], "num_workers": 0, "seed": 0, **options}
    data = getattr(anomalib_defend.data, name)(root, **options)
    data.prepare_data()
    data.setup()
    return data


def images(data, part):
    return getattr(data, part).samples.image_path.tolist()


@everywhere
@pytest.mark.parametrize("setting", ["uni_class", "leave_one_out"])
def test_splits_are_deterministic_disjoint_and_of_the_right_labels(name, setting, write):
    root = write(name)
    data, again = (prepared(name, root, setting=setting) for _ in range(2))
    parts = {part: images(data, part) for part in PARTS}
    for part, paths in parts.items():
        assert paths == images(again, part)
        assert len(set(paths)) == len(paths) > 0, part
        assert all(Path(path).is_file() for path in paths)
    assert not set(parts["train_data"]) & set(parts["val_data"])
    assert not set(parts["test_data"]) & {*parts["train_data"], *parts["val_data"]}
    assert not data.train_data.has_anomalous
    assert not data.val_data.has_anomalous
    assert data.test_data.has_anomalous


@everywhere
def test_novel_images_of_another_data_set(name, write, tmp_path):
    donor = SemanticFolder(miniatures.write_folder(tmp_path / "fakes"), category="fox", test_split_ratio=1)
    data = prepared(name, write(name), setting="uni_class", novel_dataset=donor)
    samples = data.test_data.samples
    from_donor = samples.image_path.str.startswith(str(tmp_path / "fakes"))
    assert from_donor.sum() == 10
    assert (samples.label_index[from_donor] == 1).all()
    assert (samples.label_index[~from_donor] == 0).all()
    assert (~from_donor).any()


@everywhere
def test_an_unknown_category_is_refused_with_the_list(name, write):
    with pytest.raises(ValueError, match=r"unknown 'zebra'.* Available are: \S+"):
        prepared(name, write(name), category="zebra")
