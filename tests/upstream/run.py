"""Run anomalib's own suites with Defend and the plugin's datamodules, from a checkout of anomalib's repository.

``python tests/upstream/run.py CHECKOUT``

anomalib's tests are in its repository only and are not copied. Take the commit of the release that is installed, or one
near to it. The tests write into ``CHECKOUT/tmp`` and remove it.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SUITES = [
    "tests/integration/model/test_models.py",
    "tests/integration/cli/test_cli.py",
    str(HERE / "datamodules.py"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("pytest_arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    missing = [suite for suite in SUITES if not (checkout / suite).is_file()]
    if missing:
        parser.error(f"{checkout} is not a checkout of anomalib: it has no {missing[0]}.")
    # the checkout's tests, our miniatures; the anomalib that is tested is the one that is installed
    folders = [checkout, HERE, HERE.parent, HERE.parents[1] / "src", os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(folder) for folder in folders if str(folder))}
    options = ["-q", "-p", "with_defend", "-p", "no:cacheprovider", "--override-ini=pythonpath="]
    command = [sys.executable, "-m", "pytest", f"--rootdir={checkout}", *options, *SUITES, *arguments.pytest_arguments]
    return subprocess.run(command, cwd=checkout, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
