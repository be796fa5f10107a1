"""`Fitymi`: generator, fakes, classifier and memory in one fit, each stage resumable."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import Batch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import Callback

from anomalib_defend.models.components import TrainedDetectorMixin
from anomalib_defend.models.components.arguments import as_pair, check_ranges
from anomalib_defend.models.components.batches import own_loader, preprocessed
from anomalib_defend.nn.pretrained import load_pretrained, load_weights
from anomalib_defend.nn.vit import data_config
from anomalib_defend.post_processing import NormalQuantilePostProcessor
from anomalib_defend.pre_processing import ResizeNormalize

from .fakes import FakeImages
from .generator import Generator
from .stages import Plan, Progress, Stages, plain_batches
from .torch_model import FitymiModel, resized_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

logger = logging.getLogger(__name__)

GENERATOR_LR = 2e-4
GENERATOR_CLIP = 1.0
WEIGHT_DECAY = 5e-5


class Fitymi(TrainedDetectorMixin, AnomalibModule):
    """Novelty detection with fakes near the normal images, made by an early-stopped diffusion model of them.

    The generator is trained on the normal images and stopped early, so that its samples are close to them but differ. A
    pretrained ViT, its first half frozen, learns normal against fake. The score is the distance to the 2 nearest normal
    images in its feature space.

    Source: Mirzaei et al., "Fake It Till You Make It: Towards Accurate Near-Distribution Novelty Detection", 2022. The
    classifier's settings are the paper's, as the generator's learning rate, clipping and noise schedule; no code of its
    generator was published.

    Args:
        backbone: Name of a timm ViT with a [CLS] token.
        pre_trained: Start from timm's pretrained weights of that name.
        weights: Local .safetensors or .pth file with the encoder's weights, instead of timm's.
        image_size: Height and width of the encoder's input (one number for both); the encoder's own by default. It is a
            crop of an image resized to 256 / 224 of that.
        stop_step: Steps after which the generator stops.
        fid_window: (low, high): stop the generator earlier, as soon as the Fréchet distance between its samples and
            the normal training images is at most high. Below low it has gone too far, with a warning. Computed on the
            encoder's features: values are not comparable with published FIDs, which use an Inception network.
        fid_every: Steps between two looks at that distance.
        generator_size: Height and width of the generated images.
        generator_channels: Width of each level of the U-Net; each halves the resolution of the one before.
        sampling_steps: DDIM steps for each fake, at most 1000.
        num_fakes: Number of fakes; as many as there are normal training images by default.
        fake_cache: Folder in which the sampled fakes are kept and looked for; ``fakes`` below ``default_root_dir`` by
            default.
        fake_dir: Folder of your own fakes instead: no generator is trained, and `diffusers` is not needed.
        classifier_epochs: Epochs of the classifier, each over the normal images once.
        classifier_lr: Learning rate of the classifier.
        target_fpr: Share of normal images that may be called novel; sets the threshold on the validation images.
        seed: Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without it one
            is drawn, logged and saved in the checkpoint, and no later run finds the fakes again.
        pre_processor: As in every anomalib model; has to resize to 256 / 224 of ``image_size``.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model; off by default, since there is no heat map.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    landmark = "model.classifier.weight"
    architecture = ("backbone", "generator_size", "generator_channels")
    of_this_run = ("fake_cache", "fake_dir", "classifier_epochs")
    run_seed: int  # once it fits
    model: FitymiModel
    generator: Generator | None

    def __init__(
        self,
        backbone: str = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: tuple[int, int] | int | None = None,
        stop_step: int = 20_000,
        fid_window: tuple[float, float] | None = None,
        fid_every: int = 1000,
        generator_size: int = 32,
        generator_channels: tuple[int, ...] = (128, 256, 256, 256),
        sampling_steps: int = 100,
        num_fakes: int | None = None,
        fake_cache: str | None = None,
        fake_dir: str | None = None,
        classifier_epochs: int = 30,
        classifier_lr: float = 4e-4,
        target_fpr: float = 0.05,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = False,
    ) -> None:
        check_ranges(
            stop_step=(stop_step, 1, None),
            fid_every=(fid_every, 1, None),
            generator_size=(generator_size, 4, None),
            sampling_steps=(sampling_steps, 1, 1000),
            num_fakes=(num_fakes, 1, None),
            classifier_epochs=(classifier_epochs, 1, None),
        )
        _check_generator(generator_size, generator_channels, fid_window)
        data = data_config(backbone)
        if pre_processor is True:
            size = resized_size(as_pair(image_size) or data["image_size"])
            pre_processor = ResizeNormalize(size, data["mean"], data["std"])
        if post_processor is True:
            post_processor = NormalQuantilePostProcessor(target_fpr)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.model = self._build_model()
        self.generator = None  # only while it trains
        self.progress = Progress()
        self.fake_paths: list[Path] = []
        self.small_images: Tensor | None = None  # the normal images for the generator, uint8
        self.small_index: dict[str, int] = {}  # and their places in it
        self.plan: Plan
        self._fakes: Iterator[Batch] = iter(())
        self._fakes_epoch = self._memory_step = -1  # that the iterator and the memory are of

    # ------------------------------------------------------------------------------------------------- construction

    def _build_model(self) -> FitymiModel:
        size = as_pair(self.hparams.image_size) or data_config(self.hparams.backbone)["image_size"]
        return FitymiModel(self.hparams.backbone, size).to(self.device)

    def build_generator(self) -> Generator:
        """The generator, with random weights that follow from the run's seed alone.

        Raises:
            ImportError: If `diffusers` is not installed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.run_seed)
            return Generator(self.hparams.generator_size, self.hparams.generator_channels)

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """The image alone: there is no heat map."""
        return ImageVisualizer(fields=["image"], overlay_fields=[])

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One process, since the memory has to be whole; no sanity check, which would score without it."""
        return {"num_sanity_val_steps": 0, "devices": 1}

    # ------------------------------------------------------------------------------------------------------- fitting

    def configure_callbacks(self) -> list[Callback]:
        """The components, the table of predictions, the stages, and a checkpoint of every epoch."""
        return [*super().configure_callbacks(), Stages()]

    def initialize(self) -> None:
        """Make the networks anew; the generator comes with its stage."""
        self.model, self.generator, self.progress = self._build_model(), None, Progress()

    def on_fit_start(self) -> None:
        """Load the encoder's weights, unless a checkpoint has brought them."""
        if self.trainer.ckpt_path is None:
            if self.trainer.current_epoch > 0:
                msg = "This engine has finished its training: use a new Engine, or resume with ckpt_path."
                raise RuntimeError(msg)
            if self.hparams.weights is not None:
                load_weights(self.model.encoder, self.hparams.weights)
            elif self.hparams.pre_trained:
                load_pretrained(self.model.encoder, self.hparams.backbone)
        self._fakes_epoch = self._memory_step = -1
        self._seed_first_epoch()

    @property
    def in_generator_stage(self) -> bool:
        """Whether the current epoch belongs to the generator."""
        first = self.progress.first_classifier_epoch
        return first is None or self.current_epoch < first

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for the generator while there is one, SGD without momentum for the classifier."""
        if self.generator is not None:
            return torch.optim.Adam(self.generator.parameters(), GENERATOR_LR)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, self.hparams.classifier_lr, weight_decay=WEIGHT_DECAY)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        """End the epoch in which the generator has stopped."""
        del batch, batch_idx
        return -1 if self.in_generator_stage and self.progress.first_classifier_epoch is not None else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of the stage that the epoch belongs to.

        Raises:
            FloatingPointError: If the loss of the step before is NaN or infinite.
        """
        if self.generator is not None:
            assert self.small_images is not None  # noqa: S101 - for the type checker
            rows = [self.small_index[path] for path in batch.image_path]
            loss = self.generator.loss(self.small_images[rows].to(self.device) / 255)
            term, stage, advice = "generator_loss", "the generator's stage", "train with --trainer.precision 32"
        else:
            fakes = self._next_fakes(len(batch.image))
            labels = torch.tensor([0] * len(batch.image) + [1] * len(fakes), device=fakes.device)
            loss = self.model.classification_loss(torch.cat([batch.image, fakes]), labels)
            term, stage, advice = "classifier_loss", "the classifier's stage", "lower classifier_lr"
        self.log(term, loss, prog_bar=True, batch_size=len(batch.image))
        self.log(f"{term}_epoch", loss, on_step=False, on_epoch=True, batch_size=len(batch.image))
        self._guard.watch(term, loss, batch, f"{stage}, epoch {self.current_epoch}, batch {batch_idx}", advice)
        return loss

    def _next_fakes(self, count: int) -> Tensor:
        """The next fakes of this epoch, preprocessed: as many as normal images, in an order of the epoch's own."""
        if self._fakes_epoch != self.current_epoch:
            self._fakes_epoch, self._fakes = self.current_epoch, self._all_fakes()
        return next(self._fakes).image[:count]

    def _all_fakes(self) -> Iterator[Batch]:
        """Batches of fakes for one epoch; all of them before one comes again."""
        loader = self.trainer.train_dataloader
        dataset = FakeImages(self.fake_paths, loader.dataset.augmentations)
        number = self.trainer.num_training_batches * loader.batch_size
        generator = torch.Generator().manual_seed(self.run_seed + self.current_epoch)
        rounds = [torch.randperm(len(dataset), generator=generator) for _ in range(-(-number // len(dataset)))]
        for batch in own_loader(loader, dataset, torch.cat(rounds)[:number].tolist()):
            yield preprocessed(self.trainer, self, batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Warm the generator up, count the steps, and take them into the moving average."""
        if self.generator is None:
            super().optimizer_step(*args, **kwargs)
            self.progress.classifier_steps += 1
            return
        rate = GENERATOR_LR * min(1.0, (self.progress.generator_steps + 1) / max(1, self.plan.warm_up))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        super().optimizer_step(*args, **kwargs)
        self.generator.update_average()
        self.progress.generator_steps += 1

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the generator's gradients to norm 1, unless the trainer was told otherwise."""
        if self.generator is not None and gradient_clip_val is None:
            gradient_clip_val, gradient_clip_algorithm = GENERATOR_CLIP, "norm"
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_epoch_end(self) -> None:
        """Look at the last loss; fill the memory at the end, where no validation has."""
        super().on_train_epoch_end()
        last = self.trainer.should_stop or self.current_epoch + 1 >= (self.trainer.max_epochs or 0)
        if not self.in_generator_stage and last:
            self._fill_memory()

    def on_validation_start(self) -> None:
        """Look at the last loss before the model is judged, and fill the memory that it is judged with."""
        super().on_validation_start()
        if self._is_fitting and not self.in_generator_stage:
            self._fill_memory()

    def on_fit_end(self) -> None:
        """Let go of what only the training needs."""
        super().on_fit_end()
        self._fakes, self._fakes_epoch, self.fake_paths = iter(()), -1, []
        self.small_images, self.small_index = None, {}

    def _fill_memory(self) -> None:
        """Make the features of the normal training images the memory, once after the last step."""
        if self._memory_step == self.progress.classifier_steps:
            return
        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode(mode=False), torch.no_grad():
            self.model.memory = torch.cat([self.model.features(b.image) for b in plain_batches(self.trainer, self)])
        self.model.train(was_training)
        self._memory_step = self.progress.classifier_steps

    @property
    def untrained(self) -> str:
        """What is missing before images can be scored; empty once there is a memory."""
        if len(self.model.memory):
            return ""
        generator, classifier = self.progress.generator_steps, self.progress.classifier_steps
        if not generator + classifier:
            return "has not been trained; give a checkpoint of a finished training (ckpt_path)"
        stage = "classifier" if classifier else "generator"
        return (
            f"comes out of the {stage}'s stage ({classifier or generator} steps), before the memory of normal "
            "images is filled; resume the training with `anomalib fit --ckpt_path`"
        )

    # ------------------------------------------------------------------------------------------ checkpoints and export

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the run's seed, and where its fakes are, too.

        Raises:
            FloatingPointError: If the last loss or a weight is NaN or infinite: a good checkpoint is never replaced.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["fitymi_progress"] = asdict(self.progress)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the arguments over; the generator, where there is one, only to go on training it.

        Raises:
            ImportError: If a generator is to be trained on and `diffusers` is not installed.
            ValueError: If the checkpoint is of another model or version, or its weights hold NaN or infinity.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        of_generator = [name for name in state if name.startswith("generator.")]
        if of_generator and self._is_fitting:
            self.generator = self.build_generator()
        else:
            self.generator = None
            for name in of_generator:
                del state[name]
        self.progress = Progress(**checkpoint.get("fitymi_progress", {}))

    def build(self, state: Mapping[str, Tensor]) -> None:
        """Make the networks anew, with room for as many images as the memory holds."""
        self.model = self._build_model()
        self.model.memory = torch.empty_like(state["model.memory"], device=self.device)


def _check_generator(size: int, channels: tuple[int, ...], window: tuple[float, float] | None) -> None:
    if not channels or min(channels) < 8 or any(width % 8 for width in channels):
        msg = f"generator_channels={tuple(channels)} must name multiples of 8, one for each level of the U-Net."
        raise ValueError(msg)
    factor = 2 ** (len(channels) - 1)
    if size % factor:
        msg = f"generator_size={size} must be a multiple of {factor}: each of generator_channels but one halves it."
        raise ValueError(msg)
    if window is not None and not 0 <= window[0] < window[1]:
        msg = f"fid_window={tuple(window)} must be (low, high) with 0 <= low < high."
        raise ValueError(msg)
