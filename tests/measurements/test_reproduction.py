"""What docs/reproduce.md calculates with, counted by torch."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from measurements import reproduction

NAMES = {"vit_base": "vit_base_patch16_224", "vit_small": "vit_small_patch16_224", "vgg16 at 128": "vgg16"}


@pytest.mark.parametrize("name", reproduction.PASSES)
def test_operations_of_a_pass(name):
    side = int(name[-3:]) if name[-3:] in {"128", "384"} else 224
    with torch.device("meta"):
        encoder = timm.create_model(NAMES.get(name, name), num_classes=0).eval()
        if name.startswith("vgg16"):
            encoder = encoder.features  # up to the poolings that KDAD reads
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            encoder(torch.empty(1, 3, side, side))
    assert counter.get_total_flops() / 1e9 == pytest.approx(reproduction.PASSES[name], rel=0.02)
