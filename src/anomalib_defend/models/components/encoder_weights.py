"""Teacher weights: timm's own or a local file, loaded strictly."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from timm.models import load_state_dict as read_state_dict
from torch import Tensor

CLASSIFIER_PREFIXES = ("head.", "head_dist.", "fc_head.", "pre_logits.", "attn_pool.")


def load_pretrained(vit: VisionTransformer, backbone: str) -> None:
    """Load timm's pretrained weights: from its file, else the hub's cache, else the network, which must answer at once.

    Raises:
        ConnectionError: If the weights are not on this machine and cannot be fetched.
        ValueError: If the file on this machine holds code.
    """
    config = timm.get_pretrained_cfg(backbone)
    file = config.file or _cached_file(config.hf_hub_id, config.hf_hub_filename)
    if not file:
        _require_network(backbone, config)
    elif Path(file).suffix not in {".safetensors", ".npz"}:
        _read_tensors(file, f"timm's weights of {backbone!r} in {file}")  # timm 1.0.21 would run code in it
    overlay = {"file": file} if file else None
    try:
        source = timm.create_model(backbone, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    except OSError as error:
        raise ConnectionError(_offline_message(backbone, str(error))) from error
    load_state_dict(vit, source.state_dict(), f"timm's weights of {backbone!r}")


def load_weights(vit: VisionTransformer, path: str | Path) -> None:
    """Load a local ``.safetensors`` or ``.pth`` file (tensors only, no pickled code) into the encoder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold this encoder's weights.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, name the file in it" if path.is_dir() else "no such file"
        msg = f"weights={str(path)!r}: {what} (working directory {Path.cwd()})."
        raise FileNotFoundError(msg)
    load_state_dict(vit, _read_tensors(path, f"weights={str(path)!r}"), f"weights={str(path)!r}")


def _read_tensors(path: str | Path, name: str) -> dict[str, Tensor]:
    try:
        return read_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # safetensors and torch raise many types for a damaged or unsafe file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = f"{name} is not a readable .safetensors file or tensors-only .pth file: {reason}"
        raise ValueError(msg) from error


def load_state_dict(vit: VisionTransformer, state: dict[str, Tensor], source: str) -> None:
    """Load encoder weights strictly, as float32; classifier keys are dropped, the position embedding is resampled.

    Raises:
        ValueError: If any other tensor is missing, unknown, of another shape, or not finite; names them.
    """
    strange = sorted(str(key) for key, value in state.items() if not isinstance(value, Tensor))
    if strange:
        msg = f"{source} hold more than tensors ({', '.join(strange[:3])}): not an encoder's state."
        raise ValueError(msg)
    own = vit.state_dict()
    state = {
        key: value.float() for key, value in state.items() if key in own or not key.startswith(CLASSIFIER_PREFIXES)
    }
    position = state.get("pos_embed")
    if position is not None and vit.pos_embed is not None:
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        side = round((position.shape[1] - prefix) ** 0.5)
        grid = list(vit.patch_embed.grid_size)
        if position.ndim == 3 and side * side == position.shape[1] - prefix and grid != [side, side]:
            state["pos_embed"] = resample_abs_pos_embed(position, grid, num_prefix_tokens=prefix)
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if own[key].shape != state[key].shape
        ],
        "not finite": sorted(key for key, value in state.items() if not torch.isfinite(value).all()),
    }
    found = [
        f"{len(keys)} tensors {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        msg = f"{source} do not fit the encoder: {'; '.join(found)}. Check backbone= against the file."
        raise ValueError(msg)
    vit.load_state_dict(state)


def _cached_file(repo: str | None, filename: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - slow to import, needed here alone

    for name in [filename] if filename else ["model.safetensors", "pytorch_model.bin"]:
        path = try_to_load_from_cache(repo, name) if repo else None
        if isinstance(path, str):
            return path
    return None


def _require_network(backbone: str, config: timm.models.PretrainedCfg) -> None:
    """Ask the host of the weights for an answer within seconds; timm's own retries take most of a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError(_offline_message(backbone, "HF_HUB_OFFLINE is set"))
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co") if config.hf_hub_id else config.url
    if not host:
        raise ConnectionError(_offline_message(backbone, "timm has no pretrained weights under this name"))
    try:
        urllib.request.urlopen(urllib.request.Request(host, method="HEAD"), timeout=5).close()  # noqa: S310
    except urllib.error.HTTPError:
        pass  # the host answers
    except (OSError, ValueError) as error:
        raise ConnectionError(_offline_message(backbone, f"{host} does not answer: {error}")) from error


def _offline_message(backbone: str, reason: str) -> str:
    return (
        f"The pretrained weights of {backbone!r} are not on this machine and cannot be fetched ({reason}). "
        "Pass weights=<a local .safetensors or .pth file of this encoder>, or pre_trained=False for random weights."
    )
