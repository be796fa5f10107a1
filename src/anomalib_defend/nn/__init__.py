"""Pure tensor functions and small modules, on torch, torchvision, timm, einops, sklearn and threadpoolctl alone.

They reach no network, hub, file or example, and know neither Lightning nor anomalib.
"""
