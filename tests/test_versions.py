"""The constraints file names the floors of pyproject.toml, and they are what is installed where it was used."""

import re
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]


def floors():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # the app's Gradio does not go with the lowest huggingface-hub, nor Ray with the lowest pandas: `make test-lowest`
    # leaves them out
    left_out = {"app", "scale", "dev", "docs"}
    of_users = (texts for name, texts in project["optional-dependencies"].items() if name not in left_out)
    extras = [text for texts in of_users for text in texts]
    requirements = map(Requirement, project["dependencies"] + extras)
    return {r.name: Version(s.version) for r in requirements for s in r.specifier if s.operator == ">="}


def lowest():
    """Requirements of this interpreter."""
    lines = [re.sub(" *#.*", "", line) for line in (ROOT / "constraints" / "lowest.txt").read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    assert {str(r.specifier)[:2] for r in requirements} == {"=="}
    return {r.name: Version(str(r.specifier)[2:]) for r in requirements if r.marker is None or r.marker.evaluate()}


def test_the_floors_of_torch_are_those_of_anomalibs_own_extras():
    for name in ("torch", "torchvision"):
        required = [Requirement(text) for text in requires("anomalib") if text.startswith(f"{name}>=")]
        (floor,) = {str(r.specifier) for r in required if r.marker.evaluate({"extra": "cpu"})}
        assert Version(floor.removeprefix(">=")).release[:2] == floors()[name].release[:2]


def test_constraints_are_the_floors():
    if sys.version_info >= (3, 13):
        pytest.skip("some floors have no wheels for this interpreter")
    assert lowest() == floors()


@pytest.mark.skipif(".venv-lowest" not in sys.prefix, reason="not the environment of `make test-lowest`")
def test_the_lowest_versions_are_installed():
    assert {name: Version(version(name)) for name in lowest()} == lowest()
