"""Look pinned requirements up among the known vulnerabilities, with the pip-audit of the interpreter that runs this.

``python audit.py requirements.txt`` exits with 1 where one is known. Where the advisory service cannot be reached, it
exits with 0 and says that nothing was audited (pip-audit says "no known vulnerabilities" when every lookup failed).
"""

import json
import subprocess
import sys


def main() -> int:
    """Run pip-audit and print what it found."""
    options = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
    command = [sys.executable, "-m", "pip_audit", "--requirement", sys.argv[1], *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
    try:
        packages = json.loads(result.stdout)["dependencies"]
    except ValueError:  # no connection
        packages = []
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        reason = next((package["skip_reason"] for package in packages), result.stderr.strip().rpartition("\n")[2])
        print(f"NOTHING WAS AUDITED: the advisory service cannot be reached from here ({reason}).")
        return 0
    found = [(package, vulnerability) for package in audited for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(f"{len(audited)} of {len(packages)} packages audited, {len(found)} known vulnerabilities.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
