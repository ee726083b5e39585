"""Frames as public vision models want them: resized, cropped and normalised tensors."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.pictures.frames import Frames


class Colours(NamedTuple):
    """Mean and spread of red, green and blue in what a model was trained on, for values in 0..1."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]


CLIP = Colours((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Colours((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LUMA = (0.2989, 0.5870, 0.1140)  # shares of red, green and blue in grey


def for_clip(frames: Frames, side: int) -> Tensor:
    """Frames (F, H, W, 3) for CLIP as VBench prepares them, (F, 3, side, side).

    The short side becomes `side`, bicubic and without antialiasing, and the middle is cut out.
    """
    height, width = with_short_side(frames, side)
    pictures = resized(frames, height, width, "bicubic", antialias=False)
    return normalised(middle(pictures, side), CLIP)


def for_dinov2(frames: Frames, height: int, width: int) -> Tensor:
    """Frames for DINOv2 at a size of whole patches, (F, 3, height, width)."""
    return normalised(resized(frames, height, width, "bicubic", antialias=True), IMAGENET)


def for_grounding_dino(frames: Frames) -> Tensor:
    """Frames for Grounding DINO: the short side becomes 800, or less where the long one would pass 1333."""
    short, long = sorted(frames.shape[1:3])
    side = min(800, 1333 * short / long)
    height, width = (round(side) if n == short else int(side * n / short) for n in frames.shape[1:3])
    return normalised(resized(frames, height, width, "bilinear", antialias=True), IMAGENET)


def for_sam2(frames: Frames, side: int) -> Tensor:
    """Frames for SAM 2, which wants squares and does not mind the proportions, (F, 3, side, side)."""
    return normalised(resized(frames, side, side, "bilinear", antialias=True), IMAGENET)


def for_loftr(frames: Frames) -> Tensor:
    """Frames for EfficientLoFTR, (F, 1, h, w) grey in 0..1: about 480 on the short side, in steps of 32."""
    height, width = in_steps(frames, 480, 32)
    pictures = resized(frames, height, width, "bilinear", antialias=True) / 255
    return torch.einsum("fchw,c->fhw", pictures, torch.tensor(LUMA))[:, None]  # F 1 h w


def resized(
    frames: Frames, height: int, width: int, mode: Literal["bilinear", "bicubic"], *, antialias: bool
) -> Tensor:
    """Frames (F, H, W, 3) at another size, (F, 3, height, width) float32 of whole numbers in 0..255.

    Whole, because the libraries that these models were trained with resize pictures of 8 bits into such.
    Antialiasing changes a noisy picture by several percent, so nobody gets it unasked.
    """
    pictures = torch.tensor(frames).movedim(-1, 1).float()  # F 3 H W
    if pictures.shape[2:] == (height, width):
        return pictures
    scaled = F.interpolate(pictures, (height, width), mode=mode, antialias=antialias)
    return scaled.clamp_(0, 255).round_()


def middle(pictures: Tensor, side: int) -> Tensor:
    """The square in the middle of pictures (..., H, W)."""
    top, left = (round((length - side) / 2) for length in pictures.shape[-2:])
    return pictures[..., top : top + side, left : left + side]


def normalised(pictures: Tensor, colours: Colours) -> Tensor:
    """Pictures (F, 3, H, W) in 0..255 as distances from the mean colour, in spreads."""
    mean, spread = (torch.tensor(values).view(3, 1, 1) * 255 for values in colours)
    return (pictures - mean).div_(spread)


def with_short_side(frames: Frames, side: int) -> tuple[int, int]:
    """Height and width of frames (F, H, W, 3) whose short side becomes `side`; the other one is cut down."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    return side * height // short, side * width // short


def in_steps(frames: Frames, side: int, step: int) -> tuple[int, int]:
    """Height and width in multiples of `step`, the short side about `side`; nearly in proportion."""
    short = min(frames.shape[1:3])
    height, width = (max(1, round(side * length / short / step)) * step for length in frames.shape[1:3])
    return height, width
