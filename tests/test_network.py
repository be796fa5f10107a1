"""Nothing of anomalib or of the plugin connects to the network; OpenVINO's telemetry does unless it is opted out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Written as sitecustomize.py, so that every interpreter that is started, by whomever, refuses and records connections
REFUSE = """
import os, socket

def refuse(name):
    original = getattr(socket.socket, name, None) or getattr(socket, name)

    def refused(*arguments, **options):
        first = arguments[0]
        if isinstance(first, socket.socket):
            if first.family == socket.AF_UNIX:
                return original(*arguments, **options)
            arguments = arguments[1:]
        with open(os.environ["CONNECTIONS"], "a") as file:
            print(name, *arguments, file=file)
        raise OSError("refused by the test")

    return refused

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name))
for name in ("getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse(name))
"""
# command lines, separated by --; the import is for the bare names, where the package is not installed
CLI = """
import sys
from itertools import groupby
import anomalib_defend.models, anomalib_defend.data
from anomalib.cli.cli import AnomalibCLI
for separator, line in groupby(sys.argv[1:], "--".__eq__):
    separator or AnomalibCLI(list(line))
"""
HELP = ["--help"]
CHECKPOINT = "results/Defend/SemanticVOC/dog/latest/weights/lightning/model.ckpt"
INFER = """
import sys
from pathlib import Path
from anomalib.deploy import OpenVINOInferencer
(xml,) = Path().rglob("openvino/model.xml")
assert 0 < OpenVINOInferencer(xml).predict(sys.argv[1]).pred_score < 1
"""


class Machine:
    """A home and a working folder, without network."""

    def __init__(self, folder: Path) -> None:
        self.home, self.work, self._log = folder / "home", folder / "work", folder / "connections.txt"
        for new in (self.home, self.work):
            new.mkdir()
        (folder / "sitecustomize.py").write_text(REFUSE)
        source = str(Path(__file__).parents[1] / "src")
        removed = {"HF_HUB_OFFLINE", "CI", "TF_BUILD", "JENKINS_URL"}  # nothing tells that there is no network
        self._environment = {key: value for key, value in os.environ.items() if key not in removed}
        self._environment |= {
            "HOME": str(self.home), "CONNECTIONS": str(self._log), "PYTHONPATH": f"{folder}{os.pathsep}{source}",
        }  # fmt: skip

    def opt_out(self) -> None:
        """What ``opt_in_out --opt_out``, a command of openvino-telemetry, writes."""
        (self.home / "intel").mkdir()
        (self.home / "intel" / "openvino_telemetry").write_text("0")

    def python(self, code: str, *arguments: str | Path) -> None:
        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=self.work, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr

    @property
    def connections(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_connections_are_noticed_in_every_process(machine):
    attempt = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.create_connection(('a.test', 80))"
    machine.python(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {attempt!r}], check=True)")
    assert "getaddrinfo a.test 80" in machine.connections[0]


@pytest.mark.slow
def test_importing_connects_to_nothing(machine):
    machine.python("import anomalib_defend.models, anomalib_defend.data, anomalib_defend.post_processing")
    assert machine.connections == []


@pytest.mark.slow
def test_help_connects_to_openvinos_telemetry_at_most(machine):
    machine.python(CLI, *HELP)
    assert all("www.google-analytics.com" in connection for connection in machine.connections)


@pytest.mark.slow
def test_nothing_connects_where_telemetry_is_opted_out(machine, voc):
    pytest.importorskip("openvino")
    machine.opt_out()
    model = ["--model", "Defend", "--model.backbone", "vit_digits_patch8_96", "--model.image_size", "32"]
    epochs = ["--model.dense_epochs", "1", "--model.distill_epochs", "1"]
    data = ["--data", "SemanticVOC", "--data.root", voc, "--data.category", "dog", "--data.num_workers", "0"]
    trained = ["--model", "Defend", "--ckpt_path", CHECKPOINT]
    machine.python(
        CLI, "train", *model, *epochs, *data, "--trainer.accelerator", "cpu",
        "--", "test", *trained, *data, "--trainer.accelerator", "cpu",
        # with nncf, which has telemetry of its own
        "--", "export", *trained, "--export_type", "openvino", "--compression_type", "INT8",
    )  # fmt: skip
    machine.python(INFER, next(voc.rglob("*.jpg")))
    assert machine.connections == []
