"""Frames: what everything in this folder draws on, uint8 RGB arrays (..., H, W, 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Frames = NDArray[np.uint8]  # (F, H, W, 3), or (H, W, 3) for one picture


def to_frames(video: Tensor) -> Frames:
    """A video (3, F, H, W) in [-1, 1] as frames; what lies outside of the range is clamped."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"A video has the shape (3, F, H, W), but this one has {tuple(video.shape)}.")
    unit = (video.detach().float() * 0.5 + 0.5).clamp(0, 1)
    return (unit * 255).round().byte().permute(1, 2, 3, 0).contiguous().cpu().numpy()


def enlarge(frames: Frames, min_height: int, smooth: bool = True) -> Frames:
    """Frames at least `min_height` high, by the smallest whole factor; frames high enough stay as they are.

    `smooth` interpolates; without it every pixel becomes a square, which shows exactly what a model made.
    """
    factor = -(-min_height // frames.shape[-3])
    if factor <= 1:
        return frames
    if not smooth:
        return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)
    return resize(frames, frames.shape[-3] * factor, frames.shape[-2] * factor)


def fit_height(frames: Frames, height: int) -> Frames:
    """Frames of exactly this height, in the same proportions."""
    return resize(frames, height, round(frames.shape[-2] * height / frames.shape[-3]))


def resize(frames: Frames, height: int, width: int) -> Frames:
    """Frames of another size, by antialiased bicubic interpolation."""
    if frames.shape[-3:-1] == (height, width):
        return frames
    channels = torch.from_numpy(frames).movedim(-1, -3)
    flat = channels.reshape(-1, *channels.shape[-3:]).float()  # any 3 H W
    scaled = F.interpolate(flat, (height, width), mode="bicubic", antialias=True)
    return (
        scaled.clamp(0, 255)
        .round()
        .byte()
        .movedim(-3, -1)
        .reshape(*frames.shape[:-3], height, width, 3)
        .numpy()
    )


def shade(frames: Frames, where: NDArray, colour: Sequence[float] | NDArray, strength: float) -> Frames:
    """Frames with a share of `colour` laid over them: `strength` where `where` (..., H, W) is 1."""
    share = (np.asarray(where, np.float32) * strength)[..., None]
    return np.rint(frames + share * (np.asarray(colour, np.float32) - frames)).astype(np.uint8)
