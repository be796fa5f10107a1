"""The diffusion model of the normal images, on `diffusers`, an optional extra of this package.

The variance-preserving SDE dx = -beta(t)/2 x dt + sqrt(beta(t)) dw with beta from 0.1 to 20 is, in 1,000 steps, DDPM's
noise schedule with beta from 1e-4 to 0.02. Its network predicts the noise z that was added, which is the score up to
sign and scale, -sigma_t s(x_t, t): the squared error of z is the loss E ||sigma_t s(x_t, t) + z||^2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_STEPS = 1000
NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": NUM_STEPS,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
EMA_DECAY = 0.9999
ATTENTION_RESOLUTION = 16


def require_diffusers() -> None:
    """Check that the generator can be built.

    Raises:
        ImportError: If `diffusers` is not installed; says how to install it, and how to do without.
    """
    try:
        import diffusers  # noqa: F401, PLC0415 - optional extra
    except ImportError as error:
        msg = (
            'Fitymi trains a diffusion model with `diffusers`: pip install "anomalib-defend[fitymi]". '
            f"With fakes of your own (fake_dir) it is not needed. ({error})"
        )
        raise ImportError(msg) from error


def has_diffusers() -> bool:
    """Whether the generator can be built."""
    try:
        require_diffusers()
    except ImportError:
        return False
    return True


class Generator(nn.Module):
    """U-Net, noise schedule, and the moving average of the weights that images are sampled with.

    Args:
        size: Height and width of the images; a multiple of 2 ** (number of levels - 1).
        channels: Width of each level of the U-Net. Each level halves the resolution of the one before; self-attention
            is on the level of 16 x 16 and in the middle.

    Raises:
        ImportError: If `diffusers` is not installed.
    """

    def __init__(self, size: int, channels: Sequence[int]) -> None:
        super().__init__()
        require_diffusers()
        from diffusers import DDPMScheduler, UNet2DModel  # noqa: PLC0415 - optional extra
        from diffusers.training_utils import EMAModel  # noqa: PLC0415 - optional extra

        attends = [size // 2**level == ATTENTION_RESOLUTION for level in range(len(channels))]
        self.size = size
        self.unet = UNet2DModel(
            sample_size=size,
            block_out_channels=tuple(channels),
            down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
            norm_num_groups=math.gcd(32, *channels),
        )
        self.noising = DDPMScheduler(**NOISE_SCHEDULE)
        self.ema = EMAModel(self.unet.parameters(), decay=EMA_DECAY)  # warms up: at step n at most (1 + n) / (10 + n)

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return self.unet.device

    def loss(self, images: Tensor) -> Tensor:
        """Squared error of the predicted noise, for images [B, 3, size, size] in [0, 1] (scalar)."""
        noise = torch.randn_like(images)
        steps = torch.randint(NUM_STEPS, (len(images),), device=images.device)
        noisy = self.noising.add_noise(2 * images - 1, noise, steps)
        return F.mse_loss(self.unet(noisy, steps).sample, noise)

    def update_average(self) -> None:
        """Take a finished step into the moving average."""
        self.ema.to(self.device)
        self.ema.step(self.unet.parameters())

    @torch.no_grad()
    def sample(self, indices: Sequence[int], seed: int, steps: int) -> Tensor:
        """Images with the averaged weights, by DDIM: [len(indices), 3, size, size] in [0, 1].

        Args:
            indices: Numbers of the images; each one's starting noise follows from its number and ``seed`` alone.
            seed: The run's seed.
            steps: Number of sampling steps.
        """
        from diffusers import DDIMScheduler  # noqa: PLC0415 - optional extra

        scheduler = DDIMScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing")  # begins with pure noise
        scheduler.set_timesteps(steps)
        shape = (3, self.size, self.size)
        generators = [torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63) for index in indices]
        images = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(self.device)
        parameters = list(self.unet.parameters())
        self.ema.to(self.device)
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            for step in scheduler.timesteps:
                images = scheduler.step(self.unet(images, step).sample, step, images).prev_sample
        finally:
            self.ema.restore(parameters)
        return ((images + 1) / 2).clamp(0, 1)

    def get_extra_state(self) -> dict[str, Any]:
        """The moving average, for checkpoints."""
        return self.ema.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the moving average of a checkpoint over."""
        self.ema.load_state_dict(state)
