"""How a trainer runs the stages: generator, fakes, classifier, memory."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataset, Batch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from anomalib_defend.models.components.arguments import UNSET_MAX_EPOCHS
from anomalib_defend.models.components.batches import own_batches, without_augmentations

from .fakes import SAMPLED_AT_ONCE, FakeCache, fingerprint, own_fakes, small_images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .lightning_model import Fitymi
    from .torch_model import FitymiModel

logger = logging.getLogger(__name__)

MAX_WARM_UP = 5000  # steps
FID_IMAGES = 1000  # the most that are sampled for one value


@dataclass
class Progress:
    """What a checkpoint keeps of a run, beside the weights."""

    generator_steps: int = 0
    classifier_steps: int = 0
    first_classifier_epoch: int | None = None
    """Known once the generator has stopped."""
    fakes: str | None = None
    """Key of the cache that the run fills or reads."""
    fid: float | None = None
    """As last computed."""


@dataclass(frozen=True)
class Plan:
    """Lengths of the stages: as the arguments say, or for ``fast_dev_run`` as short as can be."""

    stop_step: int
    sampling_steps: int
    num_fakes: int
    classifier_epochs: int

    @classmethod
    def of(cls, trainer: Trainer, model: Fitymi) -> Plan:
        """The plan for this model on this trainer's data."""
        loader, hparams = trainer.train_dataloader, model.hparams
        images = hparams.num_fakes or len(loader.dataset)
        plan = cls(hparams.stop_step, hparams.sampling_steps, images, hparams.classifier_epochs)
        if trainer.fast_dev_run:
            images = min(images, trainer.num_training_batches * (loader.batch_size or 1))
            plan = cls(steps_per_epoch(trainer), sampling_steps=2, num_fakes=images, classifier_epochs=1)
        return plan

    @property
    def warm_up(self) -> int:
        """Steps in which the generator's learning rate rises: 5,000, at most a quarter of its training."""
        return min(MAX_WARM_UP, self.stop_step // 4)


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps of an epoch."""
    return -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)


class Stages(Callback):
    """Enters the stage of each epoch, and gives the trainer back as it was whichever way the training ends.

    In the stage of the generator there is nothing to validate, and no early stopping on what that would have logged.
    """

    def __init__(self) -> None:
        self._set_aside: dict[str, Any] = {}  # what the trainer gets back, by attribute
        self._max_epochs: int | None = None
        self._fakes: FakeCache | None = None
        self._fid: FrechetInceptionDistance | None = None
        self._looked_at = 0  # the last step

    def on_fit_start(self, trainer: Trainer, pl_module: Fitymi) -> None:
        """Check what the trainer was given.

        Raises:
            ValueError: If it limits the number of epochs.
        """
        del pl_module
        loop = trainer.fit_loop
        if not trainer.fast_dev_run and loop.max_epochs not in {None, -1, UNSET_MAX_EPOCHS}:
            msg = (
                f"trainer.max_epochs={loop.max_epochs} does not fit: leave it out. The stages have lengths of their "
                "own, model.stop_step (in steps) and model.classifier_epochs."
            )
            raise ValueError(msg)
        self._max_epochs = loop.max_epochs

    def on_train_start(self, trainer: Trainer, pl_module: Fitymi) -> None:
        """Find the fakes, or build the generator that will make them.

        Raises:
            ImportError: If it has to be built and `diffusers` is not installed.
            ValueError: If the user's fakes cannot be used, or those of a resumed run are gone.
        """
        model, dataset = pl_module, trainer.train_dataloader.dataset
        if not isinstance(dataset, AnomalibDataset):
            msg = "Fitymi takes the training images of an anomalib dataset, from whose files the generator learns."
            raise TypeError(msg)
        plan, paths = Plan.of(trainer, model), list(dataset.samples.image_path)
        if trainer.fast_dev_run:
            trainer.fit_loop.epoch_loop.max_steps = -1
        model.plan = plan
        if model.hparams.fake_dir is not None:
            test = getattr(getattr(trainer, "datamodule", None), "test_data", None)
            test_paths = test.samples.image_path if isinstance(test, AnomalibDataset) else ()
            model.fake_paths = own_fakes(model.hparams.fake_dir, paths, test_paths)
            logger.info("%d fakes of your own from %s.", len(model.fake_paths), model.hparams.fake_dir)
            self._begin_classifier(trainer, model)
            return
        settings = generator_settings(trainer, model, plan)
        model.progress.fakes = model.progress.fakes or fingerprint(settings, paths)
        self._fakes = FakeCache(cache_folder(trainer, model), model.progress.fakes, plan.num_fakes)
        if model.generator is None and self._fakes.complete:
            logger.info("The fakes of %s are used again; there is no generator to train.", self._fakes.folder)
            model.fake_paths = self._fakes.paths
            self._begin_classifier(trainer, model)
        elif model.generator is None and model.progress.first_classifier_epoch is not None:
            msg = (
                f"The fakes of the run that is resumed are not in {self._fakes.folder}, or not all of them. Name the "
                "folder that it is in with fake_cache, resume from a checkpoint of the generator, or train anew."
            )
            raise ValueError(msg)
        else:
            if model.generator is None:
                model.generator = model.build_generator().to(model.device)
                trainer.optimizers = [model.configure_optimizers()]
            model.small_images = small_images(paths, model.generator.size)
            model.small_index = {path: index for index, path in enumerate(paths)}
            self._plan_epochs(trainer, model)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Fitymi) -> None:
        """Enter the stage of this epoch."""
        self._enter(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Fitymi, *_args: object) -> None:
        """Enter the stage of this epoch, where a run was resumed in its middle."""
        self._enter(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Fitymi, *_args: object) -> None:
        """End the generator's stage at its stopping step."""
        model, plan = pl_module, pl_module.plan
        step = model.progress.generator_steps
        if model.generator is None or model.progress.first_classifier_epoch is not None or step == self._looked_at:
            return
        self._looked_at = step
        if self._in_window(model, step) or step >= plan.stop_step:
            logger.info("The generator stops after %d steps.", step)
            model.progress.first_classifier_epoch = trainer.current_epoch + 1
            self._plan_epochs(trainer, model)

    def on_exception(self, trainer: Trainer, pl_module: Fitymi, exception: BaseException) -> None:
        """Give the trainer its settings back when a training fails or is interrupted."""
        del exception
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: Fitymi, stage: str) -> None:
        """Give the trainer its settings back."""
        del pl_module
        self._take_validation_up(trainer)
        if stage == "fit" and self._max_epochs is not None:
            trainer.fit_loop.max_epochs = self._max_epochs
            self._max_epochs = None

    # ------------------------------------------------------------------------------------------------ inner workings

    def _enter(self, trainer: Trainer, model: Fitymi) -> None:
        if model.generator is not None and not model.in_generator_stage:
            self._make_fakes(model)
            self._begin_classifier(trainer, model)
        if model.in_generator_stage:
            self._set_validation_aside(trainer)
        else:
            self._take_validation_up(trainer)

    def _begin_classifier(self, trainer: Trainer, model: Fitymi) -> None:
        """Train the classifier from this epoch on, unless a checkpoint says from which."""
        model.generator = model.small_images = None
        self._fid = None
        if not isinstance(trainer.optimizers[0], torch.optim.SGD):
            trainer.optimizers = [model.configure_optimizers()]
        if model.progress.first_classifier_epoch is None:
            model.progress.first_classifier_epoch = trainer.current_epoch
        self._plan_epochs(trainer, model)
        epochs, number = model.plan.classifier_epochs, len(model.fake_paths)
        logger.info("Training the classifier for %d epochs on %d fakes.", epochs, number)

    def _plan_epochs(self, trainer: Trainer, model: Fitymi) -> None:
        first = model.progress.first_classifier_epoch
        if first is None:  # as late as can be
            first = -(-model.plan.stop_step // steps_per_epoch(trainer))
        trainer.fit_loop.max_epochs = first + model.plan.classifier_epochs

    def _make_fakes(self, model: Fitymi) -> None:
        plan, fakes, generator = model.plan, self._fakes, model.generator
        assert fakes is not None  # noqa: S101 - for the type checker
        assert generator is not None  # noqa: S101 - as above
        if fakes.complete:
            logger.info("The fakes of %s are complete.", fakes.folder)
        else:
            names = ("generator_size", "generator_channels", "fid_window")
            settings = {
                **{name: model.hparams[name] for name in names},
                "steps": model.progress.generator_steps,
                "fid": model.progress.fid,
                "sampling_steps": plan.sampling_steps,
                "seed": model.run_seed,
            }
            generator.eval()
            fakes.fill(lambda indices: generator.sample(indices, model.run_seed, plan.sampling_steps), settings)
        model.fake_paths = fakes.paths

    def _in_window(self, model: Fitymi, step: int) -> bool:
        """Whether the samples are as near to the normal images as wanted; looked at once at each interval."""
        window, every = model.hparams.fid_window, model.hparams.fid_every
        if window is None or (step % every and step < model.plan.stop_step):
            return False
        model.progress.fid = distance = self._distance(model)
        logger.info("FID of the generator after %d steps: %.4g (window %g to %g).", step, distance, *window)
        if distance < window[0]:
            logger.warning(
                "The FID fell past its window between two checks: the fakes are nearer to the normal images than "
                "wanted. A smaller fid_every looks more often."
            )
        elif distance > window[1] and step >= model.plan.stop_step:
            logger.warning(
                "The FID did not reach its window in %d steps: the fakes are farther from the normal images than "
                "wanted. Raise stop_step, or the window.",
                step,
            )
        return distance <= window[1]

    def _distance(self, model: Fitymi) -> float:
        generator, small = model.generator, model.small_images
        assert generator is not None  # noqa: S101 - for the type checker
        assert small is not None  # noqa: S101 - as above
        count = min(FID_IMAGES, len(small))
        was_training = model.training
        model.eval()
        if self._fid is None:
            extractor = Features(model)
            self._fid = FrechetInceptionDistance(extractor, reset_real_features=False).to(model.device)
            for chunk in small[torch.linspace(0, len(small) - 1, count).long()].split(SAMPLED_AT_ONCE):
                self._fid.update(chunk.to(model.device) / 255, real=True)
        self._fid.reset()
        for indices in torch.arange(count).split(SAMPLED_AT_ONCE):
            self._fid.update(generator.sample(indices.tolist(), model.run_seed, model.plan.sampling_steps), real=False)
        model.train(was_training)
        return float(self._fid.compute())

    def _set_validation_aside(self, trainer: Trainer) -> None:
        if not self._set_aside:
            self._set_aside = {"limit_val_batches": trainer.limit_val_batches, "callbacks": trainer.callbacks}
            trainer.limit_val_batches = 0
            trainer.callbacks = [item for item in trainer.callbacks if not isinstance(item, EarlyStopping)]

    def _take_validation_up(self, trainer: Trainer) -> None:
        for name, value in self._set_aside.items():
            setattr(trainer, name, value)
        self._set_aside = {}


class Features(nn.Module):
    """What the Fréchet distance is computed on: [CLS] features of the pretrained encoder, not yet trained here.

    Args:
        model: The model, with its pre-processor.
    """

    def __init__(self, model: Fitymi) -> None:
        super().__init__()
        self.num_features: int = model.model.encoder.num_features
        self._transform = getattr(model.pre_processor, "transform", None)
        self._model: list[FitymiModel] = [model.model]  # not a part of this module

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W] in [0, 1]."""
        return self._model[0].features(images if self._transform is None else self._transform(images))


def generator_settings(trainer: Trainer, model: Fitymi, plan: Plan) -> dict[str, Any]:
    """Everything but the images that the fakes depend on."""
    names = ["generator_size", "generator_channels", "fid_window"]
    if model.hparams.fid_window is not None:  # the encoder has a say in when to stop
        names += ["fid_every", "backbone", "pre_trained", "weights", "image_size"]
    return {
        **{name: model.hparams[name] for name in names},
        "stop_step": plan.stop_step,
        "sampling_steps": plan.sampling_steps,
        "num_fakes": plan.num_fakes,
        "seed": model.run_seed,
        "batch_size": trainer.train_dataloader.batch_size,
        "batches": trainer.num_training_batches,
        "accumulated": trainer.accumulate_grad_batches,
        "precision": trainer.precision,
    }


def cache_folder(trainer: Trainer, model: Fitymi) -> Path:
    """The user's folder, or one beside ``v0``, ``v1`` ... that anomalib numbers runs with: later ones look there."""
    if model.hparams.fake_cache is not None:
        return Path(model.hparams.fake_cache).expanduser()
    root = Path(trainer.default_root_dir)
    return (root.parent if re.fullmatch(r"v\d+", root.name) else root) / "fakes"


def plain_batches(trainer: Trainer, model: Fitymi) -> Iterator[Batch]:
    """The normal training images once, in their own order, without augmentations: preprocessed, on the device."""
    batches = own_batches(trainer, model, without_augmentations(trainer.train_dataloader.dataset, model))
    for _, batch in islice(batches, trainer.num_training_batches if trainer.fast_dev_run else None):
        yield batch
