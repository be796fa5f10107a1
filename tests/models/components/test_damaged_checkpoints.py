"""A checkpoint with damage anywhere is read as it was written, or refused in a sentence that names it."""

import pytest
import torch

from anomalib_defend.models.components.checkpoint_io import AtomicCheckpointIO
from anomalib_defend.models.components.checkpoints import read_checkpoint


@pytest.fixture
def checkpoint():
    weights = torch.arange(100.0)
    return {"state_dict": {"model.weight": weights, "model.bias": -weights}, "pytorch-lightning_version": "2.6"}


@pytest.mark.parametrize("length", [1, 16])
def test_damage_anywhere_is_found_or_does_not_matter(checkpoint, length, tmp_path):
    AtomicCheckpointIO().save_checkpoint(checkpoint, path := tmp_path / "a.ckpt")
    content, messages = path.read_bytes(), []
    for start in range(0, len(content), 13):
        damaged = bytearray(content)
        damaged[start : start + length] = bytes(byte ^ 255 for byte in damaged[start : start + length])
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            torch.testing.assert_close(found["state_dict"], checkpoint["state_dict"], rtol=0, atol=0)
    assert all(str(path) in message for message in messages)
    assert len(messages) > 50


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_part_of_a_checkpoint_is_refused(checkpoint, share, tmp_path):
    AtomicCheckpointIO().save_checkpoint(checkpoint, path := tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"a\.ckpt"):
        read_checkpoint(path)
