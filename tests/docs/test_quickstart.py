"""`make quickstart` in a short form: its own recipe and the real commands, in an environment that is there already."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from documents import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# As the console scripts of an environment: the bare names are known to anomalib's
COMMANDS = {
    "anomalib": "from anomalib_defend._autoload import install; install(); from anomalib.cli.cli import main; main()",
    "anomalib-defend": "from anomalib_defend.commands import main; sys.exit(main())",
}
SHORT = (
    "--model.init_args.dense_epochs 0 --model.init_args.distill_epochs 1 --model.init_args.image_size 32 "
    "--data.init_args.max_train_images 40 --data.init_args.max_test_images 8 --data.init_args.num_workers 0"
)


def make(folder, *arguments):
    inherited = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    environment = {**inherited, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_help_names_the_targets():
    printed = make(ROOT, "help").stdout
    for target in ("quickstart", "test", "test-lowest", "docs", "audit"):
        assert re.search(rf"^make {target} ", printed, re.MULTILINE)


@pytest.mark.slow
def test_quickstart(tmp_path):
    pytest.importorskip("openvino")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "bin").mkdir()
    for name, code in COMMANDS.items():
        program = tmp_path / "bin" / name
        start = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); sys.argv[0] = '/usr/bin/{name}'; {code}"
        short = f'[ "$1" = train ] && set -- "$@" {SHORT}' if name == "anomalib" else ""
        program.write_text(f'#!/bin/bash\n{short}\nexec "{sys.executable}" -c "{start}" "$@"\n')
        program.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    installed = ".venv/.installed-quickstart"
    (tmp_path / installed).touch()
    done = make(tmp_path, "quickstart", "BIN=bin", "-o", installed)
    assert done.returncode == 0, done.stderr[-3000:]
    told = dict(re.findall(r"^(Image AUROC|Pictures|Model): +(\S+)$", done.stdout, re.MULTILINE))
    assert 0 <= float(told["Image AUROC"]) <= 1
    assert len(list((tmp_path / told["Pictures"]).rglob("*.png"))) == 8
    assert (tmp_path / told["Model"]).is_file()
    (checkpoint,) = re.findall(r"--ckpt_path '(.+)'$", done.stdout, re.MULTILINE)
    assert (tmp_path / checkpoint).is_file()
