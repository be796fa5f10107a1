"""Numbers where arithmetic may go wrong."""

import os

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

EXAMPLES = 500 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 50
numbers = settings(max_examples=EXAMPLES, deadline=None, derandomize=True)  # the same cases in every run

seeds = st.integers(0, 2**31 - 1)
sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))


@st.composite
def tensors(draw, *shape, low=-1e4, high=1e4):
    """Tensors of single or half precision, [*shape], where each side of the shape is a strategy or a number."""
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    elements = st.floats(low, high, width=32 if dtype == torch.float32 else 16)
    sides = [draw(side) if isinstance(side, st.SearchStrategy) else side for side in shape]
    return torch.from_numpy(draw(hnp.arrays(np.float32, sides, elements=elements))).to(dtype)
