"""A tiny ViT for the embedded example, registered with timm as ``vit_digits_patch8_96``.

Importing this module makes the name known to ``timm.create_model``. The pretrained weights are package data, written by
``python -m anomalib_defend.example.pretrain``: no network is needed.
"""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

__all__: list[str] = ["MODEL_NAME", "WEIGHTS"]

MODEL_NAME = "vit_digits_patch8_96"
WEIGHTS = Path(__file__).parent / "weights" / f"{MODEL_NAME}.safetensors"

# the tag keeps `create_model("vit_digits_patch8_96")` working: a model's only tag is its default
default_cfgs = generate_default_cfgs(
    {
        f"{MODEL_NAME}.scenes": {
            "file": str(WEIGHTS),
            "num_classes": 10,
            "input_size": (3, 96, 96),
            "pool_size": None,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        },
    },
)


@register_model
def vit_digits_patch8_96(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of width 96, depth 6, 3 heads for 96 x 96 images: 144 patches of 8 x 8 pixels and a class token.

    Args:
        pretrained: Load the packaged weights, pretrained on scenes of handwritten digits.
        **kwargs: Any option of timm's ``VisionTransformer``, as with timm's own models.

    Returns:
        The model, in float32 whatever the precision of the file.
    """
    options = {"img_size": 96, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3, **kwargs}
    return build_model_with_cfg(
        VisionTransformer,
        MODEL_NAME,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,  # resamples the position embedding to another image size
        feature_cfg={"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"},
        **options,
    )
