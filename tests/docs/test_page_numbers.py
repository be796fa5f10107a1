"""Numbers of the pages that follow from the package and from what it builds on."""

import re

import pytest
import timm

import anomalib_defend.models  # noqa: F401 - the example's encoder
from documents import ROOT
from measurements import reproduction
from measurements.speed.report import table


def test_the_estimates_are_the_programs() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert table([reproduction.row(name) for name in reproduction.NAMES]) in page
    assert all(f"benchmark run {name} " in page for name in reproduction.NAMES)


def test_an_estimate_by_hand() -> None:
    """CIFAR-10 against CIFAR-100: 10 categories, 3 seeds, 5,000 training and 11,000 test images."""
    vit = 35.1e9 / (312e12 * 0.35)  # seconds of a pass
    dn2, defend = 5_000 + 11_000, 5_000 * (3 * 2.2 + 10 * 1.48 + 1) + 11_000 * 2
    row = reproduction.row("near_distribution")
    assert row["of them `DN2` and `Defend`"] == pytest.approx(30 * vit * (dn2 + defend) / 3600)  # slower than reading
    epochs = {"DN2": 1, "Defend": 14, "ObjectPrototypes": 1, "Fitymi": 31, "ARNet": 125, "MSAD": 21}
    read = sum(5_000 * number + 11_000 for number in epochs.values()) + 20_000 * 16  # Fitymi's generator
    assert row["reading alone, 16 cores, hours"] == pytest.approx(30 * read / 300 / 16 / 3600)
    assert row["cells"] == "180"


ENCODER = re.compile(r"^\| `([\w.]+)` \| ([\d.]+) \| ([\w.-]+)", re.MULTILINE)
ENCODERS = ENCODER.findall((ROOT / "docs" / "which_method.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "millions", "licence"), ENCODERS)
def test_licences_are_those_of_timms_metadata(name: str, millions: str, licence: str) -> None:
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    assert config.license == licence.lower()
    assert 0 < float(millions) < 150


def test_encoders_that_are_defaults_are_named() -> None:
    files = (ROOT / "src" / "anomalib_defend" / "models").glob("*/lightning_model.py")
    defaults = set().union(*(re.findall(r'backbone: str = "([^"]+)"', file.read_text()) for file in files))
    assert defaults
    assert defaults <= {name for name, *_ in ENCODERS}
