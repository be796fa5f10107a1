"""What a user may do between two trainings; none of it may change the second one."""

from pathlib import Path

import pytest
import torch
from every_model import At, make_engine, stop, with_other_arguments
from lightning.pytorch import Callback

OLD = Path(__file__).parent / "version_0_1"


class StopAt(Callback):
    """Fails in a validation, a test or a prediction, as a broken image does."""

    def on_validation_batch_end(self, trainer, pl_module, *_args) -> None:
        stop(pl_module)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


def nothing(_model, _folder, _data) -> None:
    pass


def evaluation_mode(model, _folder, _data) -> None:
    model.eval()


def torch_export(model, folder, _data) -> None:
    model.to_torch(folder / "export")


def scores_of_images(model, folder, data) -> None:
    make_engine(folder / "test").test(model, datamodule=data, verbose=False)
    make_engine(folder / "predict").predict(model, datamodule=data)


def interrupted_fit(model, folder, data) -> None:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        make_engine(folder / "stopped", callbacks=[At(0, stop)]).fit(model, datamodule=data)


def refused_fit(model, folder, data) -> None:
    foreign = next(file for file in OLD.glob("*.ckpt") if not file.name.startswith(type(model).__name__.lower()))
    with pytest.raises(ValueError, match=r"not a checkpoint of|does not fit anomalib-defend"):
        make_engine(folder / "refused").fit(model, datamodule=data, ckpt_path=foreign)


def validated(model, folder, data) -> None:
    make_engine(folder / "validated").validate(model, datamodule=data, verbose=False)


def other_fit(model, folder, data) -> None:
    make_engine(folder / "other", limit_train_batches=1, limit_val_batches=0, accumulate_grad_batches=2).fit(
        model, datamodule=data
    )


def trial(model, folder, data) -> None:
    make_engine(folder / "trial", fast_dev_run=True).fit(model, datamodule=data)


def fit_interrupted_in_validation(model, folder, data) -> None:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        make_engine(folder / "stopped in validation", callbacks=[StopAt()]).fit(model, datamodule=data)


def interrupted_scoring(model, folder, data) -> None:
    for action in ("test", "predict"):
        with pytest.raises(RuntimeError, match=r"stopped by the test|has not been trained"):
            getattr(make_engine(folder / action, callbacks=[StopAt()]), action)(model, datamodule=data)


def random_numbers(_model, _folder, _data) -> None:
    torch.manual_seed(torch.initial_seed() + 1)


def moved_threshold(model, _folder, _data) -> None:
    if model.post_processor.calibration is not None:
        model.set_target_fpr(0.9)


def another_tested(model, folder, data) -> None:
    engine = make_engine(folder / "another")
    engine.fit(model, datamodule=data)
    other = with_other_arguments(Path(engine.best_model_path), folder / "another.ckpt")
    make_engine(folder / "test").test(model, datamodule=data, ckpt_path=other, verbose=False)


CALLS = (nothing, evaluation_mode, torch_export, scores_of_images, interrupted_fit, refused_fit)
MORE_CALLS = (
    *CALLS, validated, other_fit, trial, fit_interrupted_in_validation, interrupted_scoring, random_numbers,
    moved_threshold, another_tested,
)  # fmt: skip
