"""The bare names are known to anomalib in every import order, and the plugin never stands in anomalib's way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import anomalib_defend

PACKAGE = Path(anomalib_defend.__file__).parent
PTH = Path(__file__).parents[1] / "src" / "anomalib_defend_autoload.pth"
INSTALL = PTH.read_text()  # what a start of the interpreter runs once the wheel is installed

# Small packages with anomalib's structure: `engine` imports `models` before it is complete, `models` imports `data`.
FAKE_ANOMALIB = {
    "__init__.py": "",
    "data/__init__.py": "class InferenceBatch: ...\n__all__ = ['InferenceBatch']",
    "models/__init__.py": (
        "from anomalib.models.components import AnomalibModule\n__all__ = ['Padim']\n"
        "class Padim(AnomalibModule): ...\nALLOWED_MODULES = {'anomalib.models'}"
    ),
    "models/components.py": "from anomalib.data import InferenceBatch\nclass AnomalibModule: ...",
    "engine.py": "from anomalib.models import Padim\nclass Engine: ...",
}
FAKE_PLUGIN = {
    "models/__init__.py": (
        "from anomalib_defend._autoload import register_models\nfrom anomalib_defend.post_processing import Quantile\n"
        "from anomalib.models.components import AnomalibModule\nfrom anomalib.engine import Engine\n"
        "class Defend(AnomalibModule): ...\n__all__ = ['Defend']\nregister_models()"
    ),
    "data/__init__.py": (
        "from anomalib_defend._autoload import register_data\nfrom anomalib.data import InferenceBatch\n"
        "class SemanticVOC: ...\n__all__ = ['SemanticVOC']\nregister_data()"
    ),
    "post_processing.py": "from anomalib.models import Padim\nclass Quantile: ...",
}
IMPORT_ORDERS = [
    "import anomalib_defend",
    "from anomalib_defend import Defend",
    "from anomalib_defend import SemanticVOC",
    "import anomalib",
    "import anomalib.data, anomalib.models",
    "from anomalib.models.components import AnomalibModule",
    "from anomalib.engine import Engine",
    "from anomalib.models import Defend",
    "from anomalib.data import SemanticVOC",
    "import anomalib_defend.models",
    "import anomalib_defend.data",
    "import anomalib_defend.post_processing",
    "import importlib.util; importlib.util.find_spec('anomalib.models')",
    "import threading\n"
    "names = ['anomalib.models', 'anomalib.data', 'anomalib.engine']\n"
    "threads = [threading.Thread(target=__import__, args=(name,)) for name in names]\n"
    "[thread.start() for thread in threads]\n[thread.join() for thread in threads]",
]
CHECK = """
import sys, anomalib.models, anomalib.data
assert anomalib.models.Defend.__name__ == "Defend" and anomalib.models.__all__.count("Defend") == 1
assert anomalib.data.SemanticVOC.__name__ == "SemanticVOC" and anomalib.data.__all__.count("SemanticVOC") == 1
assert {"anomalib_defend", "anomalib_defend.models"} < anomalib.models.ALLOWED_MODULES
assert not any(type(finder).__module__ == "anomalib_defend._autoload" for finder in sys.meta_path)
"""


def run(code: str, *options: str, path: Path = PACKAGE.parent, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, with ``path`` in front of everything that is installed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])} | env
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )


def succeeds(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    for package, files in {"anomalib": FAKE_ANOMALIB, "anomalib_defend": FAKE_PLUGIN}.items():
        for name, text in files.items():
            file = tmp_path / package / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    for name in ("__init__.py", "_autoload.py"):
        shutil.copy(PACKAGE / name, tmp_path / "anomalib_defend")
    return tmp_path


@pytest.mark.parametrize("order", IMPORT_ORDERS)
def test_every_import_order(fakes: Path, order: str) -> None:
    result = run(f"{INSTALL}\n{order}\n{CHECK}", path=fakes)
    succeeds(result)
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import anomalib.data, anomalib.models", "from anomalib_defend import Defend"])
def test_import_orders_with_anomalib_itself(order: str) -> None:
    check = CHECK + (
        "assert 'defend' in anomalib.models.list_models()\n"
        "assert anomalib.models.Defend is __import__('anomalib_defend').Defend"
    )
    succeeds(run(f"{INSTALL}\n{order}\n{check}"))


def test_explicit_import_registers_without_the_hook(fakes: Path) -> None:
    succeeds(run(f"import anomalib_defend.models, anomalib_defend.data\n{CHECK}", "-S", path=fakes))


def test_opt_out(fakes: Path) -> None:
    code = f"{INSTALL}\nimport anomalib.models, sys\nassert not hasattr(anomalib.models, 'Defend')"
    succeeds(run(code, path=fakes, ANOMALIB_DEFEND_AUTOLOAD="0"))


def test_without_anomalib(fakes: Path) -> None:
    shutil.rmtree(fakes / "anomalib")
    code = f"{INSTALL}\ntry:\n    import anomalib.models\nexcept ModuleNotFoundError as error:\n    print(error)"
    result = run(code, "-S", path=fakes)
    assert succeeds(result) == "No module named 'anomalib'\n"
    assert result.stderr == ""


def test_a_failing_anomalib_keeps_its_own_error(fakes: Path) -> None:
    (fakes / "anomalib" / "models" / "components.py").write_text("raise ImportError('no torch here')")
    result = run(f"{INSTALL}\nimport anomalib.models", path=fakes)
    assert result.stderr.endswith("ImportError: no torch here\n")
    assert "could not be loaded" not in result.stderr


@pytest.mark.parametrize(
    "cause", ["raise RuntimeError('weights are gone')", "import weights_are_gone", "weights are gone"]
)
@pytest.mark.parametrize("part", ["models", "data"])
@pytest.mark.parametrize("options", [(), ("-W", "error")], ids=["default filters", "-W error"])
def test_a_broken_plugin_only_warns_and_only_once(fakes: Path, cause: str, part: str, options: tuple[str, ...]) -> None:
    (fakes / "anomalib_defend" / part / "__init__.py").write_text(cause)
    code = f"{INSTALL}\nfrom anomalib.models import Padim\nfrom anomalib.engine import Engine\nimport anomalib.data"
    result = run(code, *options, path=fakes)
    succeeds(result)
    assert result.stderr.count("could not be loaded") == 1
    assert any(word in result.stderr for word in ("weights are gone", "weights_are_gone", "invalid syntax"))
    assert "ANOMALIB_DEFEND_AUTOLOAD=0" in result.stderr


def test_a_removed_package_is_silent(tmp_path: Path) -> None:
    result = run(INSTALL, "-S", path=tmp_path)
    succeeds(result)
    assert result.stderr == ""


def test_starting_the_interpreter_imports_nothing_else(fakes: Path) -> None:
    code = f"import os, sys\nbefore = set(sys.modules)\n{INSTALL}\nprint(*sorted(set(sys.modules) - before))"
    # -S: nothing of the environment's own .pth files, so neither of an installed plugin
    assert succeeds(run(code, "-S", path=fakes)) == "anomalib_defend anomalib_defend._autoload\n"


@pytest.mark.slow
def test_costs_little_on_top_of_anomalib_and_opens_no_socket() -> None:
    code = """
import json, sys, time
start = time.process_time()
import anomalib.models, anomalib.data
events, between = [], time.process_time()
sys.addaudithook(lambda event, _: events.append(event) if event.startswith("socket.") else None)
import anomalib_defend.models, anomalib_defend.data
print(json.dumps([(time.process_time() - between) / (between - start), events]))
"""
    # with compiled files, as an installed package has, from the second run on at the latest; CPU time, not elapsed
    settings = {"ANOMALIB_DEFEND_AUTOLOAD": "0", "PYTHONDONTWRITEBYTECODE": ""}
    runs = [json.loads(succeeds(run(code, **settings)).splitlines()[-1]) for _ in range(3)]
    assert median(share for share, _ in runs) < 0.03
    assert all(events == [] for _, events in runs)


@pytest.mark.slow
def test_works_without_sockets() -> None:
    code = f"""
{INSTALL}
import socket

def refuse(*args, **kwargs):
    raise OSError("no sockets here")

socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse
{CHECK}
"""
    succeeds(run(code))
