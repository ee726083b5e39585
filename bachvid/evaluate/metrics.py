"""What is measured of videos and tokens, each by one formula; frames are uint8 (F, H, W, 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from bachvid.method.mask import grow
from bachvid.models.grid import Grid
from bachvid.pictures.frames import Frames
from bachvid.stage.watch import token_masks

CAP = 100.0  # dB of equal pictures
OUTLINE = 1 / 16  # of the picture's height, one latent: so soft is the edge of a puppet that a model drew
LEAST_BACKGROUND = 0.05  # share of a frame that two videos must both show for a PSNR
CELLS = 32  # of a texture, per height of the picture: two pixels of 64
CORNER = (-0.5, -0.1)  # body coordinates (u, v) where a texture begins; it is CELLS x CELLS
LEAST_CELLS = 12  # that two puppets must both show for a PSNR
TOKEN = 0.125  # a token's side in body coordinates of a puppet at scale 1
SAME_PLACE = 0.75 * TOKEN  # two tokens nearer than this show the same place of the puppet


def over_pairs(measure: Callable[[Any, Any], float], videos: Sequence[Any]) -> float:
    """The mean of `measure` over all unordered pairs, those that give NaN left out; NaN if none is left."""
    return mean(measure(a, b) for a, b in combinations(videos, 2))


def mean(values: Iterable[float]) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def psnr_background(a: Frames, b: Frames, puppet_a: NDArray, puppet_b: NDArray) -> float:
    """PSNR in dB of what both videos show of the stage: the mean over frames, NaN if no frame shows enough.

    Puppet masks (F, H, W) bool. Pixels outside of both masks and farther from them than `OUTLINE` count, at
    their own number: nearer ones show some of a puppet, and would outweigh all the rest.
    """
    puppets, shape = torch.from_numpy(puppet_a | puppet_b), puppet_a.shape
    seen = ~grow(puppets, Grid(*shape), round(OUTLINE * shape[1])).view(shape).numpy()
    valid = seen.mean(axis=(1, 2)) >= LEAST_BACKGROUND
    return mean(psnr(a[t][seen[t]], b[t][seen[t]]) for t in np.flatnonzero(valid))


def psnr_foreground(a: NDArray, b: NDArray) -> float:
    """PSNR in dB of two puppets' textures (see `textures`): the mean over frames, NaN if none shows enough.

    Cells that both puppets show in a frame count.
    """
    seen = ~(np.isnan(a[..., 0]) | np.isnan(b[..., 0]))  # F cells
    valid = seen.sum(axis=1) >= LEAST_CELLS
    return mean(psnr(a[t][seen[t]], b[t][seen[t]]) for t in np.flatnonzero(valid))


def textures(frames: Frames, mask: NDArray, uv: NDArray) -> NDArray[np.float64]:
    """Every frame's puppet spread out in body coordinates, (F, cells, 3) in 0..255; NaN is not seen.

    `mask` (F, H, W) bool and `uv` (F, H, W, 2); a cell is the mean of its pixels. Pose, place and size are
    gone.
    """
    count = CELLS * CELLS
    out = np.full((len(frames), count, 3), np.nan)
    at = np.floor((uv - np.array(CORNER)) * CELLS).astype(int).clip(0, CELLS - 1)
    cell = at[..., 1] * CELLS + at[..., 0]  # F H W
    for t in range(len(frames)):
        where, colours = cell[t][mask[t]], frames[t][mask[t]].astype(float)
        pixels = np.bincount(where, minlength=count)
        sums = np.stack([np.bincount(where, colours[:, c], count) for c in range(3)], axis=-1)
        shown = pixels > 0
        out[t, shown] = sums[shown] / pixels[shown, None]
    return out


def psnr(a: NDArray, b: NDArray) -> float:
    """PSNR in dB of two arrays of 0..255, computed in float64 and at most `CAP`."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return CAP if error == 0 else min(CAP, float(10 * np.log10(255.0**2 / error)))


def smoothness(frames: Frames) -> float:
    """How well every second frame is foretold by the two beside it: 1 less the mean distance, of 0..1.

    VBench's motion smoothness with plain blending in place of an interpolating network. A
    video that stands still has 1: see `motion`.
    """
    values = frames.astype(np.float64)
    middles = (values[:-2:2] + values[2::2]) / 2
    return 1 - float(np.abs(middles - values[1:-1:2]).mean()) / 255


def motion(frames: Frames) -> float:
    """The mean distance of neighbouring frames, of 0..1."""
    return float(np.abs(np.diff(frames.astype(np.float64), axis=0)).mean()) / 255


def jitter(mask: NDArray) -> float:
    """The mean second difference of where the puppet is, in heights of the picture; NaN if it is ever away.

    `mask` (F, H, W) bool. The puppet is where its pixels are on average.
    """
    if not mask.any(axis=(1, 2)).all():
        return float("nan")
    places = np.array([np.argwhere(frame).mean(axis=0) for frame in mask])  # F 2
    return float(np.linalg.norm(np.diff(places, n=2, axis=0), axis=1).mean()) / mask.shape[1]


def iou(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two masks; NaN if both are empty."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else float("nan")


def token_uv(mask: Tensor, uv: Tensor, grid: Grid) -> Tensor:
    """Body coordinates of the tokens that show the puppet (see `token_masks`), (N, 2); NaN for all others.

    `mask` (F, H, W) bool and `uv` (F, H, W, 2). A token has the median of its puppet pixels.
    """
    known = torch.where(mask[..., None], uv.float(), torch.nan)  # F H W 2
    deep = (len(known) - 1) // max(grid.frames - 1, 1) or 1  # frames in a token; the first token has only one
    absent = torch.full_like(known[:1], torch.nan).expand(deep * grid.frames - len(known), -1, -1, -1)
    boxes = rearrange(
        torch.cat([absent, known]),
        "(t d) (h y) (w x) c -> (t h w) (d y x) c",
        t=grid.frames,
        h=grid.height,
        w=grid.width,
    )
    shown = token_masks(mask[None].float(), grid)[0]  # N
    return torch.where(shown[:, None], boxes.nanmedian(dim=1).values, torch.nan)


def true_partners(frame_uv: Tensor, identity_uv: Tensor, grid: Grid) -> Tensor:
    """The identity's token that shows the same place of the puppet as each token of a frame video.

    One in every latent frame, (N, T) int64; -1 where there is none.

    `frame_uv` and `identity_uv` (N, 2) are body coordinates, NaN off the puppet. A token has partners when
    the identity shows its place in any frame; then the nearest token counts in every frame with a puppet.
    """
    distance = torch.cdist(frame_uv, identity_uv).nan_to_num(nan=torch.inf)  # N N
    nearest, place = distance.unflatten(1, (grid.frames, -1)).min(dim=2)  # N T
    known = (nearest.amin(dim=1, keepdim=True) <= SAME_PLACE) & nearest.isfinite()
    first = torch.arange(grid.frames) * grid.height * grid.width
    return torch.where(known, place + first, -1)


def nearest_partner(frame_uv: Tensor, identity_uv: Tensor) -> Tensor:
    """The identity's token, in any of its frames, that shows the place of each token best, (N,) int64.

    -1 where the identity never shows that place; body coordinates as in `true_partners`.
    """
    distance, place = torch.cdist(frame_uv, identity_uv).nan_to_num(nan=torch.inf).min(dim=1)
    return torch.where(distance <= SAME_PLACE, place, -1)


def match_errors(partner: Tensor, truth: Tensor, grid: Grid) -> Tensor:
    """Squared distances, in tokens, between predicted and true partners, one for each token with a truth.

    `partner` (N,) holds an identity token for every token of the frame video, `truth` (N, T) the true ones
    (see `true_partners`); a prediction is held against that of the frame which it points into.
    """
    tokens, true = _asked(partner, truth, grid)
    return _apart(partner[tokens], true, grid)


def movements(partner: Tensor, truth: Tensor, grid: Grid) -> Tensor:
    """Squared distances, in tokens, of the same true partners from the tokens' own places."""
    return _apart(*_asked(partner, truth, grid), grid)


def _asked(partner: Tensor, truth: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The tokens whose prediction can be judged, and the true partners that they are held against."""
    true = truth.gather(1, (partner // (grid.height * grid.width))[:, None])[:, 0]  # N
    tokens = (true >= 0).nonzero()[:, 0]
    return tokens, true[tokens]


def _apart(some: Tensor, others: Tensor, grid: Grid) -> Tensor:
    places = grid.places()[:, 1:].double()
    return (places[some] - places[others]).square().sum(dim=1)
