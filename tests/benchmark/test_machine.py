"""What a machine is called, and whether it multiplies in bfloat16."""

import pytest

from anomalib_defend.benchmark import machine


@pytest.mark.parametrize(
    ("name", "flags", "units", "has_bf16"),
    [
        ("Intel(R) Xeon(R) Processor", "fpu avx2 avx512f amx_bf16 amx_int8", "avx2, avx512f, amx_bf16, amx_int8", True),
        ("AMD EPYC 9R45", "fpu avx2 avx512f avx512_bf16", "avx2, avx512f, avx512_bf16", True),
        ("AMD EPYC bf16", "fpu avx2", "avx2", False),
    ],
)
def test_what_the_processor_has(tmp_path, monkeypatch, name, flags, units, has_bf16) -> None:
    core = f"processor : 0\nmodel name\t: {name}\nflags\t\t: {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(core * 2)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.has_bf16() is has_bf16
    assert machine.describe(1).startswith(f"{name} ({units}), 2 cores, 1 threads; Python ")
