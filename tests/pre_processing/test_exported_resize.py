"""The exported resize has the same numbers in torch, ONNX Runtime and OpenVINO, however long an image is."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from anomalib_defend.nn.resize import interpolation_weights
from anomalib_defend.pre_processing import ResizeNormalize

LONGEST = 60_000
INT32 = 2**31
sides = st.one_of(st.integers(1, 2000), st.integers(1, LONGEST))
inputs = st.integers(32, 1024)


class LargestInteger(TorchDispatchMode):
    """Notes the largest whole number that any operation returns."""

    value = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_floating_point() and result.numel():
            self.value = max(self.value, int(result.max()), -int(result.min()))
        return result


@given(old=sides, new=inputs)
@example(old=LONGEST, new=32)
@example(old=LONGEST - 1, new=33)
@example(old=1, new=1024)
def test_no_whole_number_needs_more_than_32_bits(old: int, new: int) -> None:
    """OpenVINO's CPU plugin computes int64 as int32, and says nothing when it overflows."""
    assume(old * new < 2e7)  # seconds
    with LargestInteger() as largest:
        interpolation_weights(old, new, torch.zeros(1))
    assert old < largest.value < INT32


def test_the_limit_that_the_docstring_names() -> None:
    with LargestInteger() as below:
        interpolation_weights(185_000, 32, torch.zeros(1))
    with LargestInteger() as above:
        interpolation_weights(186_000, 32, torch.zeros(1))
    assert below.value < INT32 < above.value


@cache
def runtimes(size: int, folder: str):
    """The exported resize to ``size`` in torch, ONNX Runtime and OpenVINO."""
    import onnxruntime
    import openvino

    module = ResizeNormalize((size, size), (0.0,) * 3, (1.0,) * 3).export_transform.eval()
    path = f"{folder}/{size}.onnx"
    dynamic = ({2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)},)
    torch.onnx.export(
        module, (torch.rand(1, 3, 64, 100),), path, input_names=["image"], dynamo=True, opset_version=18,
        verbose=False, dynamic_shapes=dynamic,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return (
        lambda image: module(torch.from_numpy(image)).numpy(),
        lambda image: session.run(None, {"image": image})[0],
        lambda image: compiled(image)[0],
    )


@pytest.mark.slow
@given(long=sides, short=st.integers(1, 40), upright=st.booleans(), size=st.sampled_from([32, 96, 224, 512]))
@example(long=20_500, short=64, upright=False, size=96)  # where the weights once overflowed
@example(long=LONGEST, short=60, upright=True, size=32)
@example(long=31_000, short=64, upright=False, size=224)
def test_three_runtimes_agree(tmp_path_factory, long: int, short: int, upright: bool, size: int) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    assume(long * size < 2e7)  # seconds; the largest of both is below
    folder = tmp_path_factory.getbasetemp() / "exported_resize"
    folder.mkdir(exist_ok=True)
    height, width = (long, short) if upright else (short, long)
    image = np.random.default_rng(long).random((1, 3, height, width), dtype=np.float32)
    expected, *others = (run(image) for run in runtimes(size, str(folder)))
    assert expected.shape == (1, 3, size, size)
    for result in others:
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_three_runtimes_agree_at_the_largest_input(tmp_path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    image = np.random.default_rng(0).random((1, 3, 64, LONGEST), dtype=np.float32)
    expected, *others = (run(image) for run in runtimes(1024, str(tmp_path)))
    for result in others:
        np.testing.assert_allclose(result, expected, atol=1e-5, rtol=0)
