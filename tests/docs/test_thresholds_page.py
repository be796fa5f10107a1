"""The numbers of docs/thresholds.md that follow from the package itself."""

import re
from pathlib import Path

import pytest
import torch

from anomalib_defend.decision import expected_count, expected_rate, least_fdr
from anomalib_defend.post_processing import NormalQuantilePostProcessor

PAGE = (Path(__file__).parents[2] / "docs" / "thresholds.md").read_text(encoding="utf-8")


def test_the_worked_example() -> None:
    rate, hundred, sixty = expected_rate(99, 5), expected_count(99, 5, 100), expected_count(99, 5, 60)
    assert f"between {100 * rate.low:.1f} and {100 * rate.high:.0f} %" in PAGE
    assert f"between {hundred.low:.0f} and {hundred.high:.0f}." in PAGE
    assert f"(expected: {sixty.mean:.1f}, 95 % interval {sixty.low:.0f} to {sixty.high:.0f};" in PAGE


def test_the_least_rates() -> None:
    rows = re.findall(r"^\| (\d+) \| (\S+) \| (\S+) \| (\S+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 5
    for count, *cells in rows:
        for cell, share in zip(cells, (0.01, 0.05, 0.3), strict=True):
            least = least_fdr(int(count), share)
            assert least >= 1 if cell == "none" else float(cell) == pytest.approx(least, abs=5e-4)


def test_the_lines_of_code(tmp_path, capsys) -> None:
    processor = NormalQuantilePostProcessor()
    processor.calibrate(torch.rand(99))
    processor.calibration.save(tmp_path / "model.calibration.json")
    (code,) = re.findall("```python\n(.*?)```", PAGE, re.DOTALL)
    path = "results/weights/openvino/model.calibration.json"
    assert path in code
    exec(code.replace(path, str(tmp_path / "model.calibration.json")), {})  # noqa: S102
    assert 0 < float(capsys.readouterr().out.split()[0]) < 0.05
