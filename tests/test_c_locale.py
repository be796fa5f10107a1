"""The C locale, which cron jobs and containers have: a name with an umlaut is scored, alone and in its folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from every_model import make_engine
from PIL import Image

import miniatures
from anomalib_defend import DN2, SemanticFolder
from anomalib_defend.decision.table import read_table
from anomalib_defend.files.names import from_text

COMMANDS = """
import sys
import anomalib_defend.data, anomalib_defend.models  # the bare names, also where the package is not installed
from anomalib.cli.cli import AnomalibCLI
from anomalib_defend.commands import main

model = ["--model", "DN2", "--ckpt_path", "model.ckpt"]
trainer = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
for number, path in enumerate(sys.argv[1:]):
    data = ["--data", "PredictFolder", "--data.root", path, "--data.num_workers", "0"]
    AnomalibCLI(["predict", *model, *data, *trainer, "--default_root_dir", f"results{number}"])
    assert main(["score", "model.ckpt", path, "--out", f"scores{number}.csv"]) == 0
"""


@pytest.mark.slow  # a process that imports everything
def test_an_umlaut_in_the_c_locale(tmp_path) -> None:
    root = miniatures.write_folder(tmp_path / "data", ["dog", "cat"], 10)
    model, engine = DN2("vit_digits_patch8_96", pre_trained=False, image_size=32), make_engine(tmp_path / "training")
    engine.fit(model, datamodule=SemanticFolder(root, "dog", num_workers=0))
    Path(engine.best_model_path).rename(tmp_path / "model.ckpt")
    (folder := tmp_path / "größe").mkdir()
    images = [folder / "Stück.png", folder / "ähnlich.png"]
    for image in images:
        Image.new("RGB", (40, 30)).save(image)
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONUTF8", "PYTHONIOENCODING"}}
    # as bytes: what a shell hands over
    command = [sys.executable, "-c", COMMANDS, b"gr\xc3\xb6\xc3\x9fe/St\xc3\xbcck.png", b"gr\xc3\xb6\xc3\x9fe"]
    done = subprocess.run(command, cwd=tmp_path, env={**environment, "LC_ALL": "C"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, expected in enumerate([images[:1], images]):
        (predicted,) = {path.resolve() for path in (tmp_path / f"results{number}").rglob("predictions.csv")}
        for table in (predicted, tmp_path / f"scores{number}.csv"):
            rows = read_table(table)
            assert all(row.score is not None for row in rows)
            found = sorted(os.fsencode(tmp_path / from_text(row.path)) for row in rows)
            assert found == sorted(map(os.fsencode, expected))
