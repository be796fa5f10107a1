"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def core() -> Any:
    """One for all models: the end of each of several may end the process (OpenVINO 2026.4)."""
    import openvino  # noqa: PLC0415 - optional extra

    return openvino.Core()


def compiled(model: Any, hint: str | None, **options: Any) -> Any:
    """Compile a model for the CPU.

    Args:
        model: An `openvino.Model`.
        hint: OpenVINO's precision; its own default if None.
        options: Others of OpenVINO.

    Raises:
        ValueError: If the hint is no precision of OpenVINO's.
    """
    precision = {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
    try:
        return core().compile_model(model, "CPU", {**precision, **options})
    except RuntimeError as error:
        if "INFERENCE_PRECISION_HINT" not in str(error):
            raise
        told = str(error).strip().splitlines()[-1]
        msg = f"--hint {hint} is no precision of OpenVINO's ({told}): give f32 or bf16, or leave it out."
        raise ValueError(msg) from error
