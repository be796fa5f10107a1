"""A test or prediction in a fresh folder leaves it fit for a training."""

import os

import pytest
from anomalib.utils.path import create_versioned_dir

from anomalib_defend.models.components.run_folder import number_latest


@pytest.mark.parametrize("earlier", [(), ("v0", "v1")])
def test_a_real_folder_gets_a_number_and_a_link(tmp_path, earlier):
    for name in earlier:
        (tmp_path / name).mkdir()
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "config.yaml").write_text("seed: 1")
    number_latest(tmp_path / "latest")
    assert os.readlink(tmp_path / "latest") == f"v{len(earlier)}"  # noqa: PTH115 - relative, as anomalib's
    assert (tmp_path / "latest" / "config.yaml").read_text() == "seed: 1"
    assert create_versioned_dir(tmp_path).name == f"v{len(earlier) + 1}"  # the next training's


@pytest.mark.parametrize("earlier", [(), ("v0", "v1")])
def test_where_nothing_is_a_link_leads_to_the_folder_of_the_run(tmp_path, earlier):
    root = tmp_path / "DN2" / "birds"
    for name in earlier:
        (root / name).mkdir(parents=True)
    number_latest(root / "latest")
    assert os.readlink(root / "latest") == f"v{len(earlier)}"  # noqa: PTH115
    (root / "latest" / "test.csv").write_text("")
    assert create_versioned_dir(root).name == f"v{len(earlier) + 1}"
    assert (root / f"v{len(earlier)}" / "test.csv").exists()


def test_a_link_and_another_name_are_left_alone(tmp_path):
    (tmp_path / "v0").mkdir()
    (tmp_path / "latest").symlink_to("v0")
    (tmp_path / "mine").mkdir()
    for name in ("latest", "mine"):
        number_latest(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "mine", "v0"]
    assert (tmp_path / "latest").is_symlink()
