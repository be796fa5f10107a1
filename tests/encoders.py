"""A ViT of 10,000 parameters, known to timm as ``vit_miniature_patch8_32``: built and trained in no time."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

__all__: list[str] = ["MINIATURE"]

MINIATURE = "vit_miniature_patch8_32"

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
    },
)


@register_model
def vit_miniature_patch8_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of width 16, depth 3, 2 heads for 32 x 32 images: 16 patches of 8 x 8 pixels and a class token."""
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, **kwargs}
    return build_model_with_cfg(VisionTransformer, MINIATURE, pretrained, **options)
