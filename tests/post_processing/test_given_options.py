"""What is given beside a checkpoint goes before what it brings, and is said once; all else is the checkpoint's."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from anomalib_defend.post_processing import NormalQuantilePostProcessor, calibrated

OPTIONS = {
    "target_fpr": st.floats(0.01, 0.99),
    "image_sensitivity": st.floats(0, 1),
    "pixel_sensitivity": st.floats(0, 1),
    "enable_thresholding": st.booleans(),
    "enable_normalization": st.booleans(),
}
some_options = st.fixed_dictionaries({}, optional=OPTIONS)
normal_scores = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40).map(torch.tensor)


@given(saved=some_options, now=some_options, scores=normal_scores)
def test_no_option_is_taken_and_ignored(saved, now, scores):
    checkpoint, processor = NormalQuantilePostProcessor(**saved), NormalQuantilePostProcessor(**now)
    checkpoint.calibrate(scores)
    with mock.patch.object(calibrated.logger, "info") as said:
        processor.load_checkpoint_config(checkpoint.checkpoint_config())
        processor.load_state_dict(checkpoint.state_dict())
    expected = {name: now.get(name, getattr(checkpoint, name)) for name in OPTIONS}
    assert {name: getattr(processor, name) for name in OPTIONS} == expected
    told = [call.args[0] % call.args[1:] for call in said.call_args_list]
    other = [f"{name}={value} as given" for name, value in now.items() if value != getattr(checkpoint, name)]
    assert sorted(sentence.partition(";")[0] for sentence in told) == sorted(other)
    fresh = NormalQuantilePostProcessor(expected["target_fpr"])
    fresh.calibrate(scores)
    assert processor.image_threshold == fresh.image_threshold
