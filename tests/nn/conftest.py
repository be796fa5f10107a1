"""Every test draws the same random numbers, whichever run before it."""

import pytest
import torch

import anomalib_defend.example.encoder  # noqa: F401 - gives timm the encoder that tests name


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
