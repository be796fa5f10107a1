"""A ViT of 10,000 parameters and a VGG of 5,000, known to timm: built and trained in no time."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vgg import VGG
from timm.models.vision_transformer import VisionTransformer

__all__: list[str] = ["MINIATURE", "MINIATURE_VGG"]

MINIATURE = "vit_miniature_patch8_32"
MINIATURE_VGG = "vgg_miniature"

default_cfgs = generate_default_cfgs(
    {
        f"{MINIATURE}.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        f"{MINIATURE_VGG}.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "features.0",
            "classifier": "head.fc",
        },
    },
)


@register_model
def vit_miniature_patch8_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of width 16, depth 3, 2 heads for 32 x 32 images: 16 patches of 8 x 8 pixels and a class token."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, **kwargs}
    return build_model_with_cfg(VisionTransformer, MINIATURE, pretrained, **options)


@register_model
def vgg_miniature(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG of at most 16 channels with two convolutions in its first and third block; its head is as large as ever."""
    channels = [4, 4, "M", 8, "M", 8, 8, "M", 16, "M", 16, "M"]
    return build_model_with_cfg(VGG, MINIATURE_VGG, pretrained, cfg=channels, **kwargs)
