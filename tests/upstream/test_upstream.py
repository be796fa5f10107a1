"""anomalib's own suites as acceptance tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("ANOMALIB_SOURCE")


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason="ANOMALIB_SOURCE does not name a checkout of anomalib's repository")
def test_anomalibs_own_suites_pass():
    command = [sys.executable, Path(__file__).with_name("run.py"), CHECKOUT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
