"""The stages of a training: the generator, whose fakes are sampled at its end, then the classifier."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from anomalib_defend.models.components.fit_normality import fit_normality
from anomalib_defend.models.components.normal_images import evaluating
from anomalib_defend.models.components.other_images import other_batches
from anomalib_defend.models.components.stage import Optimizers, Stage, Step

from .fakes import SAMPLED_AT_ONCE, Fakes, Lengths, SmallImages
from .generator import Generator, require_diffusers
from .torch_model import FitymiModel

if TYPE_CHECKING:
    from anomalib.data import Batch

    from anomalib_defend.models.components.run import Run

logger = logging.getLogger(__name__)

GENERATOR_LR = 2e-4
WEIGHT_DECAY = 5e-5
MAX_WARM_UP = 5000  # steps
FID_IMAGES = 1000  # the most that are sampled for one value


class GeneratorStage(Stage):
    """Train a diffusion model of the normal images, stop it early, and sample the fakes."""

    name, length = "generator", "stop_step"
    loss_name = "generator_loss"
    validates = False
    gradient_clip = 1.0
    model: FitymiModel

    def __init__(self, model: FitymiModel, arguments: Mapping[str, Any], fakes: Fakes) -> None:
        super().__init__(model, arguments)
        self._fakes = fakes
        self._steps = 0  # of the optimiser
        self._fid: float | None = None  # as last computed
        self._stopped = False
        self._resumed = self._reused = False
        self._lengths: Lengths | None = None
        self._small = SmallImages(arguments["generator_size"])  # the normal images
        self._metric: FrechetInceptionDistance | None = None

    @property
    def skipped(self) -> bool:
        """With fakes of one's own."""
        return self.arguments["fake_dir"] is not None

    @property
    def generator(self) -> Generator:
        """The network."""
        assert self.model.generator is not None  # noqa: S101 - for the type checker
        return self.model.generator

    def plan(self, run: Run) -> int:
        """As many epochs as ``stop_step`` takes, or as the fakes took that are there already.

        Raises:
            ImportError: If it has to be trained and `diffusers` is not installed.
        """
        self._lengths = lengths = Lengths.of(self.arguments, run)
        self._reused, steps = self._fakes.find(run) and not self._resumed, lengths.stop_step
        if self._reused:
            logger.info("The fakes of %s are used again; there is no generator to train.", self._fakes.cache.folder)
            self.model.generator = None
            steps = self._fakes.cache.steps or steps
        else:
            require_diffusers()
        return -(-steps // run.steps_per_epoch)

    @property
    def reused(self) -> bool:
        """Where the fakes are there already."""
        return self._reused

    def optimizers(self) -> Optimizers:
        """Adam, whose learning rate rises over the first 5,000 steps, at most a quarter of them."""
        if self.model.generator is None:  # the fakes will be found, or it cannot be built
            return None
        optimizer = torch.optim.Adam(self.generator.parameters(), GENERATOR_LR)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self._warm_up))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}

    @property
    def _warm_up(self) -> int:
        stop = self.arguments["stop_step"] if self._lengths is None else self._lengths.stop_step
        return max(1, min(MAX_WARM_UP, stop // 4))

    def step(self, batch: Batch, run: Run) -> Step:
        """Loss of the predicted noise."""
        return Step(self.generator.loss(self._small(batch.image_path).to(run.device) / 255))

    def updated(self, run: Run) -> None:
        """Take the step into the moving average; stop where it is time to."""
        assert self._lengths is not None  # noqa: S101 - for the type checker
        self._steps += 1
        self.generator.update_average()
        if self._in_window(run) or self._steps >= self._lengths.stop_step:
            logger.info("The generator stops after %d steps.", self._steps)
            self._stopped = True

    @property
    def finished(self) -> bool:
        """Whether it has stopped."""
        return self._stopped

    def leave(self, run: Run) -> None:
        """Sample the fakes, each process its share."""
        cache, generator, lengths = self._fakes.cache, self.generator, self._lengths
        assert lengths is not None  # noqa: S101 - for the type checker
        if not cache.complete:
            names = ("generator_size", "generator_channels", "fid_window")
            settings = {
                **{name: self.arguments[name] for name in names},
                "steps": self._steps,
                "fid": self._fid,
                "sampling_steps": lengths.sampling_steps,
                "seed": run.seed,
            }
            run.barrier()  # everyone has looked
            with evaluating(generator):
                cache.sample(
                    lambda indices: generator.sample(indices, run.seed, lengths.sampling_steps),
                    run.rank,
                    run.world_size,
                )
            run.barrier()  # all are there
            if run.rank == 0:
                cache.finish(settings)
            run.barrier()
        self._fakes.paths = cache.paths
        self.model.generator = None
        self.close(run, failed=False)

    def close(self, run: Run, failed: bool) -> None:
        """Let go of the images."""
        del run, failed
        self._small, self._metric = SmallImages(self.arguments["generator_size"]), None

    def state_dict(self) -> dict[str, Any]:
        """Steps, and where the fakes are."""
        return {"steps": self._steps, "stopped": self._stopped, "fid": self._fid, "fakes": self._fakes.key}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self._resumed = True
        self._steps, self._stopped, self._fid = state["steps"], state["stopped"], state["fid"]
        self._fakes.key = state["fakes"]

    def _in_window(self, run: Run) -> bool:
        """Whether the samples are as near to the normal images as wanted; looked at once at each interval."""
        assert self._lengths is not None  # noqa: S101 - for the type checker
        window, every, step = self.arguments["fid_window"], self.arguments["fid_every"], self._steps
        if window is None or (step % every and step < self._lengths.stop_step):
            return False
        self._fid = distance = self._distance(run)
        logger.info("FID of the generator after %d steps: %.4g (window %g to %g).", step, distance, *window)
        if distance < window[0]:
            logger.warning(
                "The FID fell past its window between two checks: the fakes are nearer to the normal images than "
                "wanted. A smaller fid_every looks more often."
            )
        elif distance > window[1] and step >= self._lengths.stop_step:
            logger.warning(
                "The FID did not reach its window in %d steps: the fakes are farther from the normal images than "
                "wanted. Raise stop_step, or the window.",
                step,
            )
        return distance <= window[1]

    def _distance(self, run: Run) -> float:
        """The same in every process, each of which computes it whole."""
        assert self._lengths is not None  # noqa: S101 - for the type checker
        paths = run.images.paths
        paths = [paths[row] for row in run.images.rows(FID_IMAGES)]
        with evaluating(self.model):
            if self._metric is None:
                features = Features(self.model, run.transform)
                metric = FrechetInceptionDistance(features, reset_real_features=False, sync_on_compute=False)
                self._metric = metric.to(run.device)
                for chunk in self._small(paths).split(SAMPLED_AT_ONCE):
                    self._metric.update(chunk.to(run.device) / 255, real=True)
            self._metric.reset()
            for indices in torch.arange(len(paths)).split(SAMPLED_AT_ONCE):
                samples = self.generator.sample(indices.tolist(), run.seed, self._lengths.sampling_steps)
                self._metric.update(samples, real=False)
        return float(self._metric.compute())


class ClassifierStage(Stage):
    """Train the classifier of normal and fake images, and keep the normal images' features."""

    name, length = "classifier", "classifier_epochs"
    loss_name, advice = "classifier_loss", "lower classifier_lr, or train with --trainer.precision 32"
    model: FitymiModel

    def __init__(self, model: FitymiModel, arguments: Mapping[str, Any], fakes: Fakes) -> None:
        super().__init__(model, arguments)
        self._fakes = fakes
        self._batches: Iterator[Batch] = iter(())
        self._epoch = -1  # that the iterator is of

    def plan(self, run: Run) -> int:
        """Its epochs.

        Raises:
            ValueError: If the fakes of a resumed run are gone.
        """
        if not self._fakes.find(run) and self.model.generator is None:
            msg = (
                f"The fakes of the run that is resumed are not in {self._fakes.cache.folder}, or not all of them. Name "
                "the folder that it is in with fake_cache, resume from a checkpoint of the generator, or train anew."
            )
            raise ValueError(msg)
        return super().plan(run)

    def optimizers(self) -> torch.optim.SGD:
        """SGD without momentum."""
        classifier = [*self.model.encoder.parameters(), *self.model.classifier.parameters()]
        trained = [parameter for parameter in classifier if parameter.requires_grad]
        return torch.optim.SGD(trained, self.arguments["classifier_lr"], weight_decay=WEIGHT_DECAY)

    def enter(self, run: Run) -> None:
        """Say on what it is trained."""
        del run
        logger.info("The classifier is trained on %d fakes.", len(self._fakes.paths))

    def step(self, batch: Batch, run: Run) -> Step:
        """Cross-entropy of as many normal as fake images."""
        if self._epoch != run.epoch:
            self._epoch, self._batches = run.epoch, other_batches(run, self._fakes.paths)
        fakes = next(self._batches).image[: len(batch.image)]
        labels = torch.tensor([0] * len(batch.image) + [1] * len(fakes), device=fakes.device)
        return Step(self.model.classification_loss(torch.cat([batch.image, fakes]), labels))

    def complete(self, run: Run) -> None:
        """Fill the memory with the features that the classifier has now."""
        fit_normality(self.model, run)

    def close(self, run: Run, failed: bool) -> None:
        """Let go of the fakes."""
        del run, failed
        self._batches, self._epoch = iter(()), -1

    def state_dict(self) -> dict[str, Any]:
        """Where the fakes are."""
        return {"fakes": self._fakes.key}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Look there."""
        self._fakes.key = state["fakes"]


class Features(nn.Module):
    """What the Fréchet distance is computed on: [CLS] features of the pretrained encoder, not yet trained here.

    Args:
        model: The model.
        transform: Of its pre-processor, or ``None``.
    """

    def __init__(self, model: FitymiModel, transform: Any) -> None:
        super().__init__()
        self.num_features: int = model.encoder.num_features
        self._transform = transform
        self._model: list[FitymiModel] = [model]  # not a part of this module

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W] in [0, 1]."""
        return self._model[0].encode(images if self._transform is None else self._transform(images))
