"""The machine that a cell runs on: its description, and the memory that this process takes."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_PACKAGES = ("torch", "timm", "anomalib", "openvino", "nncf")


def has_bf16() -> bool:
    """Whether the processor multiplies in bfloat16: without, engines emulate it, slower than float32."""
    return any(unit.endswith("_bf16") for unit in _units(_cpuinfo()))


def describe(threads: int) -> str:
    """One line: processor, cores, threads and versions."""
    lines = _cpuinfo()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()} ({', '.join(_units(lines))}), {len(names)} cores, "
        f"{threads} threads; "
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    )


def _cpuinfo() -> list[str]:
    return _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []


def _units(lines: list[str]) -> list[str]:
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def peak_gib() -> float:
    """Memory of this process at its highest, in GiB."""
    if sys.platform == "linux":
        return status_mib("VmHWM") / 1024
    import resource  # noqa: PLC0415 - not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def status_mib(name: str) -> float:
    """A line of this process's status, in MiB (Linux): ``VmRSS``, memory now, or ``VmHWM``, at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
