"""The wheel and the editable install, each in a fresh environment, where stock anomalib knows the bare names."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
AUTOLOAD = "anomalib_defend_autoload.pth"
# The console script of the environment that is tested, as pip would write it
ANOMALIB = "from anomalib.cli.cli import main; main()"


@dataclass
class Environment:
    """A virtual environment that sees this one's other packages, but not what its .pth files add."""

    path: Path
    python: Path
    site_packages: Path

    @classmethod
    def create(cls, path: Path) -> "Environment":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
        python = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        environment = cls(path, python, site_packages=next(path.rglob("site-packages")))
        outer = [folder for folder in sys.path if Path(folder).name == "site-packages"]
        # the name sorts last: what is installed here comes first
        (environment.site_packages / "zz_outer.pth").write_text("\n".join(outer) + "\n")
        return environment

    def pip(self, *arguments: str | Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        result = subprocess.run(pip, capture_output=True, text=True, cwd=self.path, check=False)
        assert result.returncode == 0, result.stderr

    def run(self, code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run code in a folder outside the checkout."""
        return self._run([self.python, "-c", code, *arguments])

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``anomalib-defend`` there."""
        return self._run([self.python.parent / "anomalib-defend", *arguments])

    def _run(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        clean = {
            key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "ANOMALIB_DEFEND_AUTOLOAD"}
        }
        result = subprocess.run(
            command,
            capture_output=True, text=True, cwd=self.path, env=clean, check=False, timeout=500,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module", params=["wheel", pytest.param("editable", marks=pytest.mark.slow)])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment.create(tmp_path_factory.mktemp(request.param) / "venv")
    if request.param == "wheel":
        environment.pip("install", "--no-deps", "--force-reinstall", request.getfixturevalue("wheel"))
    else:
        environment.pip("install", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    return environment


def test_wheel_ships_the_package_with_its_data(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    source = ROOT / "src"
    suffixes = {".py", ".safetensors", ".typed", ".yaml", ".md", ".j2", ".js", ".css"}
    files = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.suffix in suffixes}
    assert "anomalib_defend/benchmark/configs/reduced.yaml" in files
    metadata = {name for name in names if name.startswith("anomalib_defend-")}
    assert names - metadata == files | {AUTOLOAD}  # and nothing else: no test, no measurement
    assert {name.rpartition("/")[2] for name in metadata} == {
        "METADATA", "RECORD", "WHEEL", "LICENSE", "entry_points.txt",
    }  # fmt: skip


def test_package_comes_from_where_it_was_installed(installed: Environment) -> None:
    source = ROOT / "src" if installed.path.parent.name.startswith("editable") else installed.site_packages
    found = installed.run("import anomalib_defend; print(anomalib_defend.__file__)").stdout.strip()
    assert Path(found) == source / "anomalib_defend" / "__init__.py"


@pytest.mark.slow
def test_the_comparisons_are_found_by_name_outside_a_checkout(installed: Environment) -> None:
    printed = installed.command("benchmark", "run", "digits", "--dry-run").stdout
    assert printed.startswith("digits: 15 cells, 0 finished.")
    assert "Defend, random teacher | Digits | three | seed 4" in printed


def test_the_example_is_written_outside_a_checkout(installed: Environment) -> None:
    printed = installed.command("example", "--root", "digits").stdout
    assert "440 scenes" in printed
    assert (installed.path / "digits" / "VOC2012").is_dir()


@pytest.mark.slow
def test_python_names(installed: Environment) -> None:
    code = """
from anomalib.data import SemanticVOC
from anomalib.models import get_model, list_models
assert "defend" in list_models()
for model in ("defend", {"class_path": "anomalib_defend.Defend"}):
    assert type(get_model(model)).__name__ == "Defend", model
"""
    installed.run(code)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "data"), [("Defend", "SemanticVOC")])
def test_command_line_names(installed: Environment, model: str, data: str) -> None:
    arguments = ["train", "--model", model, "--data", data, "--data.root", "VOC2012", "--data.category", "dog"]
    printed = installed.run(ANOMALIB, *arguments, "--print_config").stdout
    assert "class_path: anomalib_defend." in printed
    assert f".{model}\n" in printed
    assert f".{data}\n" in printed


@pytest.mark.slow
def test_wheel_trains_and_exports_from_the_command_line(wheel: Path, voc: Path, tmp_path: Path) -> None:
    environment = Environment.create(tmp_path / "venv")
    environment.pip("install", "--no-deps", "--force-reinstall", wheel)
    data = ["--data", "SemanticVOC", "--data.root", voc, "--data.category", "dog", "--data.num_workers", "0"]
    model = ["--model", "Defend", "--model.backbone", "vit_digits_patch8_96", "--model.image_size", "32"]
    stages = ["--model.dense_epochs", "1", "--model.distill_epochs", "1", "--trainer.accelerator", "cpu"]
    output = environment.run(ANOMALIB, "train", *model, *stages, *data).stdout
    assert "image_AUROC" in output
    (ckpt,) = (environment.path / "results").rglob("model.ckpt")
    environment.run(ANOMALIB, "export", "--model", "Defend", "--export_type", "openvino", "--ckpt_path", ckpt)
    assert list(environment.path.rglob("openvino/model.xml"))


def test_what_remains_after_removal_is_silent(wheel: Path, tmp_path: Path) -> None:
    environment = Environment.create(tmp_path / "venv")
    (environment.site_packages / "zz_outer.pth").unlink()
    environment.pip("install", "--no-deps", wheel)
    assert environment.run("import anomalib_defend").stderr == ""

    shutil.rmtree(environment.site_packages / "anomalib_defend")  # by hand, and the .pth file stays
    assert (environment.site_packages / AUTOLOAD).exists()
    assert environment.run("pass").stderr == ""

    environment.pip("install", "--no-deps", "--force-reinstall", wheel)
    environment.pip("uninstall", "--yes", "anomalib-defend")
    assert not list(environment.path.rglob("*anomalib*"))
    assert environment.run("pass").stderr == ""
