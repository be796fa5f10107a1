"""`Fitymi`: what is its own about the contract that all models share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.metrics.evaluator import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer

from anomalib_defend.models.components import NoveltyDetectorMixin
from anomalib_defend.models.components.arguments import check_ranges

from .fakes import Fakes
from .generator import Generator, has_diffusers
from .stages import ClassifierStage, GeneratorStage
from .torch_model import FitymiModel, resized_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_defend.models.components.stage import Stage


class Fitymi(NoveltyDetectorMixin, AnomalibModule):
    """Novelty detection with fakes near the normal images, made by an early-stopped diffusion model of them.

    The generator is trained on the normal images and stopped early, so that its samples are close to them but differ. A
    pretrained ViT, its first half frozen, learns normal against fake. The score is the distance to the 2 nearest normal
    images in its feature space.

    Source: Mirzaei et al., "Fake It Till You Make It: Towards Accurate Near-Distribution Novelty Detection", 2022
    (https://arxiv.org/abs/2205.14297). The
    classifier's settings are the paper's, as the generator's learning rate, clipping and noise schedule; no code of its
    generator was published.

    Args:
        backbone: [main] Name of a timm ViT with a [CLS] token.
        pre_trained: Start from timm's pretrained weights of that name.
        weights: [main] Local .safetensors or .pth file with the encoder's weights, instead of timm's.
        image_size: Height and width of the encoder's input (one number for both); the encoder's own by default. It is a
            crop of an image resized to 256 / 224 of that.
        stop_step: [main] Steps after which the generator stops.
        fid_window: (low, high): stop the generator earlier, as soon as the Fréchet distance between its samples and
            the normal training images is at most high. Below low it has gone too far, with a warning. Computed on the
            encoder's features: values are not comparable with published FIDs, which use an Inception network.
        fid_every: Steps between two looks at that distance.
        generator_size: Height and width of the generated images.
        generator_channels: Width of each level of the U-Net; each halves the resolution of the one before.
        sampling_steps: DDIM steps for each fake, at most 1000.
        num_fakes: [main] Number of fakes; as many as there are normal training images by default.
        fake_cache: Folder in which the sampled fakes are kept and looked for; ``fakes`` below ``default_root_dir`` by
            default.
        fake_dir: Folder of your own fakes instead: no generator is trained, and `diffusers` is not needed.
        classifier_epochs: [main] Epochs of the classifier, each over the normal images once.
        classifier_lr: Learning rate of the classifier.
        target_fpr: [main] Share of normal images that may be called novel; sets the threshold on the validation images.
            By default 0.05, or what the checkpoint has.
        seed: [main] Seeds everything when ``fit`` starts; give it for a reproducible run from the command line. Without
            it one is drawn, logged and saved in the checkpoint, and no later run finds the fakes again.
        pre_processor: As in every anomalib model; has to resize to 256 / 224 of ``image_size``.
        post_processor: As in every anomalib model.
        evaluator: As in every anomalib model.
        visualizer: As in every anomalib model; there is no heat map.

    Raises:
        ValueError: If an argument is out of range, named with what is possible.
    """

    distinctive_tensor = "model.classifier.weight"
    architecture = ("backbone", "generator_size", "generator_channels")
    stage_names = (GeneratorStage.name, ClassifierStage.name)
    own_on_resume = ("fake_cache", "fake_dir", "classifier_epochs")
    pretrained_part = "encoder"
    has_map = False
    tensors_of_0_1 = {  # noqa: RUF012 - a constant of the class
        "model.memory": "model.normality.memory",
        "generator.": "model.generator.",
    }
    model: FitymiModel

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
        target_fpr: float | None = None,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: ImageVisualizer | bool = True,
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
        data = self.input_data(backbone, image_size)
        data = data._replace(image_size=resized_size(data.image_size))
        super().__init__(pre_processor, post_processor, evaluator, visualizer, target_fpr=target_fpr, data=data)
        self.model = self.build()

    def build(self, state: Mapping[str, torch.Tensor] | None = None) -> FitymiModel:
        """Encoder, head and memory; the generator, where a checkpoint holds one."""
        size = self.input_data(self.hparams.backbone, self.hparams.image_size).image_size
        model = FitymiModel(self.hparams.backbone, size)
        if any(name.startswith("model.generator.") for name in state or {}):
            model.generator = self.build_generator()
        return model

    def build_generator(self) -> Generator:
        """The generator, with random weights that follow from the run's seed alone.

        Raises:
            ImportError: If `diffusers` is not installed.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.run_seed or 0)
            return Generator(self.hparams.generator_size, self.hparams.generator_channels)

    def stages(self) -> list[Stage]:
        """Generator and classifier, which share the fakes."""
        fakes = Fakes(self.hparams)
        return [GeneratorStage(self.model, self.hparams, fakes), ClassifierStage(self.model, self.hparams, fakes)]

    def initialize(self) -> None:
        """Make the networks anew."""
        self.model = self.build()
        if self.hparams.fake_dir is None and has_diffusers():  # else the fakes have to be there
            self.model.generator = self.build_generator()
        self.model.to(self.device)

    def migrate(self, checkpoint: dict[str, Any]) -> None:
        """Version 0.1 counts the steps elsewhere; and whoever does not train needs no generator."""
        state, progress = checkpoint["state_dict"], checkpoint.pop("fitymi_progress", None)
        if progress is not None:
            state["trained_steps"] = torch.tensor([progress["generator_steps"], progress["classifier_steps"]])
        if not self._is_fitting:
            for name in [name for name in state if name.startswith("model.generator.")]:
                del state[name]


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
