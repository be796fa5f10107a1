"""anomalib's tests of its own image datamodules, for the plugin's; run by run.py with a checkout of anomalib."""

from functools import partial
from pathlib import Path

import pytest
from tests.unit.data.datamodule.base.image import _TestAnomalibImageDatamodule
from torchvision.transforms.v2 import Resize

import miniatures
from anomalib_defend import data

TEST_IMAGES = {f"v{i:02d}": {"dog" if i % 2 else "cat": 1} for i in range(16)}
CONFIGS = Path(__file__).parents[2] / "configs" / "data"
# the suite's batches hold four images, so that each half of a split has to
DATA = {
    "voc": (data.SemanticVOC, partial(miniatures.write_voc, val=TEST_IMAGES), "dog"),
    "coco": (data.SemanticCOCO, miniatures.write_coco, "dog"),
    "cifar10": (data.SemanticCIFAR10, miniatures.write_cifar10, ["cat", "dog", "frog"]),
    "cifar100": (data.SemanticCIFAR100, miniatures.write_cifar100, ["people", "fish"]),
    "mnist": (data.SemanticMNIST, miniatures.write_mnist, [3, 5, 8]),
    "fashion_mnist": (data.SemanticFashionMNIST, miniatures.write_fashion_mnist, ["Coat", "Bag", "Dress"]),
    "folder": (data.SemanticFolder, partial(miniatures.write_folder, number=30), "dog"),
}


class TestSemantic(_TestAnomalibImageDatamodule):
    @pytest.fixture(params=DATA)
    def name(self, request):
        return request.param

    @pytest.fixture(params=["from_train", "from_test", "same_as_test"])
    def val_split_mode(self, request):
        return request.param

    @pytest.fixture
    def datamodule(self, name, val_split_mode, tmp_path, monkeypatch):
        datamodule_class, write, category = DATA[name]
        test_images = {image: [18] if image % 2 else [1] for image in range(101, 117)}
        monkeypatch.setitem(miniatures.COCO_LABELS, "val", test_images)
        datamodule = datamodule_class(
            miniatures.trust(monkeypatch, write(tmp_path / "data")), category=category,
            train_batch_size=4, eval_batch_size=4, num_workers=0, augmentations=Resize((256, 256)),
            val_split_mode=val_split_mode, val_split_ratio=0.5, seed=0,
        )  # fmt: skip
        datamodule.prepare_data()
        datamodule.setup()
        return datamodule

    @pytest.fixture
    def fxt_data_config_path(self, name):
        return str(CONFIGS / f"semantic_{name}.yaml")
