"""What the method saw, laid over the videos: foreground masks, and which token matched which."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bachvid.pictures.frames import Frames, enlarge, shade

ACCENT = (255, 46, 136)
UNMATCHED = (150, 150, 156)  # a foreground token whose partner is in the identity's background
MIN_HEIGHT = 384  # overlays are drawn on enlarged frames, so that their edges are sharp


def show_mask(frames: Frames, mask: Tensor) -> Frames:
    """Frames (F, H, W, 3), enlarged if small, with the foreground of `mask` (T, h, w) tinted and outlined."""
    frames = enlarge(frames, MIN_HEIGHT)
    inside = over_pixels(mask.cpu().numpy(), frames)
    tinted = shade(frames, inside, ACCENT, 0.3)
    return shade(tinted, outline(inside, frames.shape[1] // 120), ACCENT, 1.0)


def show_matches(
    identity: Frames, frames: Frames, identity_mask: Tensor, mask: Tensor, partner: Tensor
) -> tuple[Frames, Frames]:
    """Both videos, enlarged if small, their foreground painted so that matched places have the same colour.

    A colour stands for a place in the identity's foreground: the hue runs from its top to its bottom, dark
    on its left and light on its right. Every foreground token of the other video wears the colour of its
    partner, or grey if that lies in the identity's background. A good map repeats the pattern wherever the
    character went; a bad one is confetti. Masks are (T, h, w) bool, `partner` (T h w,) indexes the
    identity's tokens.
    """
    source, target = identity_mask.cpu().numpy(), mask.cpu().numpy()
    colours = np.where(source[..., None], place_colours(source), UNMATCHED)  # T h w 3
    carried = colours.reshape(-1, 3)[partner.cpu().numpy()].reshape(*target.shape, 3)
    return _paint(identity, source, colours), _paint(frames, target, carried)


def place_colours(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A colour (T, h, w, 3) for every token by where it lies in the foreground box of its frame."""
    colours = np.zeros((*mask.shape, 3), np.float32)
    for t, frame in enumerate(mask):
        ys, xs = np.nonzero(frame)
        if len(ys):
            down = (np.arange(mask.shape[1]) - ys.min()) / max(np.ptp(ys), 1)
            across = (np.arange(mask.shape[2]) - xs.min()) / max(np.ptp(xs), 1)
            colours[t] = place_colour(down[:, None].clip(0, 1), across.clip(0, 1))
    return colours


def place_colour(down: NDArray, across: NDArray) -> NDArray:
    """Colours (..., 3) in [0, 255] of places in a unit square: red at its top, violet at its bottom."""
    wheel = (np.array([5, 3, 1]) + np.asarray(down)[..., None] * 0.78 * 6) % 6
    pure = 1 - np.minimum(wheel, 4 - wheel).clip(0, 1)
    dark, light = (1 - 2 * across).clip(0, 1)[..., None], (2 * across - 1).clip(0, 1)[..., None]
    return 255 * (pure * (1 - 0.55 * dark) * (1 - 0.6 * light) + 0.6 * light)


def over_pixels(tokens: NDArray, frames: Frames) -> NDArray:
    """Values of tokens (T, h, w, ...) at every pixel of the frames, (F, H, W, ...).

    The first latent frame is the first frame alone; each further one covers an equal share of the others.
    """
    count, height, width = frames.shape[:3]
    t = -(-np.arange(count) * (tokens.shape[0] - 1) // max(count - 1, 1))
    y = np.arange(height) * tokens.shape[1] // height
    x = np.arange(width) * tokens.shape[2] // width
    return tokens[t[:, None, None], y[:, None], x]


def outline(mask: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """The pixels of a mask (F, H, W) within `thickness` of its edge; the edge of the picture is none."""
    core = mask
    for _ in range(max(thickness, 1)):
        padded = np.pad(core, ((0, 0), (1, 1), (1, 1)), "edge")
        core = core & padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return mask & ~core


def _paint(frames: Frames, mask: NDArray[np.bool_], colours: NDArray) -> Frames:
    """Frames with a faded background, their foreground in the tokens' colours but still showing through."""
    frames = enlarge(frames, MIN_HEIGHT)
    inside = over_pixels(mask, frames)
    faded = shade(frames, ~inside, (255, 255, 255), 0.6)
    return shade(faded, inside, over_pixels(colours, frames), 0.7)
