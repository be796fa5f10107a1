"""Encoders of timm: what is built is timm's, in the memory layout that costs least."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm
import torch

from anomalib_defend.nn.encoder import create_encoder
from anomalib_defend.nn.vgg import create_vgg

if TYPE_CHECKING:
    from torch import nn

SIZE = (64, 64)


@pytest.mark.parametrize(
    "create", [lambda: create_encoder("test_efficientnet", SIZE), lambda: create_vgg("vgg11", SIZE)]
)
def test_convolutions_see_their_channels_next_to_each_other(create) -> None:
    encoder: nn.Module = create().eval()
    found = []
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels > 1:
            module.register_forward_hook(
                lambda _, __, output: found.append(output.is_contiguous(memory_format=torch.channels_last))
            )
    with torch.inference_mode():
        encoder.forward_features(torch.rand(2, 3, *SIZE))
    assert found
    assert all(found)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit"])
def test_an_encoder_computes_what_timms_does(backbone: str) -> None:
    ours = create_encoder(backbone, SIZE).eval()
    own_size = {"img_size": SIZE} if "vit" in backbone else {}
    theirs = timm.create_model(backbone, num_classes=0, **own_size).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, *SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)
