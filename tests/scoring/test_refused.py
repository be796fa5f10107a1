"""What cannot be done is said before anything is begun, and the right command is not in its way."""

import pytest

from anomalib_defend import DN2


def test_a_wrong_option_begins_nothing(dn2, images, rows, tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"--hint int3 is no precision of OpenVINO's .*: give f32 or bf16"):
        rows(dn2.export, *images, hint="int3")
    with monkeypatch.context() as patch:
        patch.setattr(DN2, "require_training", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rows(dn2.checkpoint, *images)
    assert not list(tmp_path.glob("out*"))
    assert len(rows(dn2.export, *images, hint="f32")) == len(images)
