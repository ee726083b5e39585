"""Which places of two videos show the same, and how alike two videos are, by public vision models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

from bachvid.calibrate.prepare import for_dinov2, for_loftr, in_steps
from bachvid.calibrate.pretrained import DINOV2, LOFTR, described, load
from bachvid.calibrate.truth import Seen, seen_tokens
from bachvid.models.grid import Grid
from bachvid.pictures.frames import Frames

SIDE = 224  # pixels of a picture's short side: the least that DINOv2 was trained on
BATCH = 8  # frames that go through a network at once
QUANTILE = 0.5  # of the similarities of all candidates; what lies under it is no partner (our choice)
LEAST_POINTS = 20  # partners in two frames; with fewer, they are said to have none


class Matcher(Protocol):
    """Finds the same places in two videos; `about` names its model, for the record."""

    about: str

    def look(self, frames: Frames) -> Any:
        """What it keeps of a video, as `Seen.clues`."""

    def partners(self, frame: Seen, identity: Seen, grid: Grid) -> Tensor:
        """The identity's token for each token of a frame video, (N, T) int64, as `Truth.partners`."""


class Dinov2:
    """DINOv2: features of places, matched by mutual nearest neighbours; and of whole frames."""

    def __init__(self, name: str = DINOV2.usual, device: torch.device | str = "cpu") -> None:
        self.about = described(DINOV2, name)
        self.model = load(DINOV2, name, device)
        self.patch: int = self.model.config.patch_size
        self.device = device

    def look(self, frames: Frames) -> Callable[[Grid], Tensor]:
        """A function from a grid to the features of its tokens, computed once and only when asked for."""
        return cache(partial(self.tokens, frames))

    def partners(self, frame: Seen, identity: Seen, grid: Grid) -> Tensor:
        shown, shown_there = (seen_tokens(seen, grid) for seen in (frame, identity))
        if not (shown.any() and shown_there.any()):
            return torch.full((grid.tokens, grid.frames), -1)
        return mutual_partners(frame.clues(grid), identity.clues(grid), shown, shown_there, grid)

    def tokens(self, frames: Frames, grid: Grid) -> Tensor:
        """Features of length 1 for every token of a video, (N, C).

        Frames are resized so that a token is a whole number of patches, mostly one, and keep their
        proportions, for tokens are square. A latent frame has the mean over its frames.
        """
        fine = -(-SIDE // (self.patch * min(grid.height, grid.width)))  # patches along a token's side
        height, width = (length * self.patch * fine for length in grid[1:])
        seen = self._seen(frames, height, width)
        patches = torch.cat([each.last_hidden_state[:, 1:].cpu() for each in seen])  # no class token
        box = {"h": grid.height, "w": grid.width, "y": fine, "x": fine}
        maps = reduce(patches, "f (h y w x) c -> f (h w) c", "mean", **box)
        return F.normalize(by_latent_frame(maps, grid.frames), dim=-1).flatten(0, 1)

    def classes(self, frames: Frames) -> Tensor:
        """The class token of every frame after the final norm, (F, C), at 224x336 for a 3:2 video."""
        size = in_steps(frames, SIDE, self.patch)
        return torch.cat([seen.pooler_output.cpu() for seen in self._seen(frames, *size)])

    @torch.no_grad()
    def _seen(self, frames: Frames, height: int, width: int) -> Iterator[Any]:
        for start in range(0, len(frames), BATCH):
            pictures = for_dinov2(frames[start : start + BATCH], height, width)
            yield self.model(pictures.to(self.device))


def likeness(ours: Tensor, theirs: Tensor) -> float:
    """The cosine of the class tokens (F, C) of two videos, frame by frame, on average (Eq. 15)."""
    return F.cosine_similarity(ours, theirs).mean().item()


class EfficientLoFTR:
    """EfficientLoFTR: matches rigid things that look alike; a second opinion beside DINOv2.

    Only its coarse stage, whose cells are 8 pixels wide, finer than a token. The fine stage of transformers
    5.23 pairs cells by their number, not with their partners, and in batches mixes up the pairs.
    """

    def __init__(self, name: str = LOFTR.usual, device: torch.device | str = "cpu") -> None:
        self.about = described(LOFTR, name)
        self.model = load(LOFTR, name, device)
        self.device = device

    def look(self, frames: Frames) -> Frames:
        return frames

    def partners(self, frame: Seen, identity: Seen, grid: Grid) -> Tensor:
        both = (frame, identity)
        ours, theirs = (for_loftr(middle_frames(seen.clues, grid.frames)) for seen in both)  # T 1 h w
        shown, shown_there = (seen_tokens(seen, grid).unflatten(0, (grid.frames, -1)) for seen in both)
        out = torch.full((grid.frames, grid.height * grid.width, grid.frames), -1)
        for s, t in product(range(grid.frames), repeat=2):
            if shown[s].any() and shown_there[t].any():
                here, there = self._pairs(ours[s], theirs[t], grid)
                kept = shown[s, here] & shown_there[t, there]
                for place, other in zip(here[kept].tolist(), there[kept].tolist(), strict=True):
                    out[s, place, t] = t * out.shape[1] + other
        return known_well(out.flatten(0, 1), grid)

    @torch.no_grad()
    def _pairs(self, picture: Tensor, other: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Tokens (K,) of two frames that show the same; of several pairs of a token, the surest is last."""
        pair = torch.stack([picture, other])[None].to(self.device)  # 1 2 1 h w
        coarse = self.model(pair).feature_maps[0][0].cpu()  # 2 C rows columns
        config, (_, channels, rows, columns) = self.model.config, coarse.shape
        here, there = coarse.flatten(2).mT  # cells C
        similarity = here @ there.T / channels / config.coarse_matching_temperature
        i, j = sure_pairs(similarity, config.coarse_matching_threshold)
        token, inner = cells(rows, columns, grid, config.coarse_matching_border_removal)
        kept = inner[i] & inner[j]
        return token[i[kept]], token[j[kept]]


def mutual_partners(
    here: Tensor,
    there: Tensor,
    shown: Tensor,
    shown_there: Tensor,
    grid: Grid,
    quantile: float = QUANTILE,
    least: int = LEAST_POINTS,
) -> Tensor:
    """The nearest token `there` for each token `here`, in every latent frame, (N, T) int64; -1 is unknown.

    Features (N, C) of length 1, and masks (N,) bool of the tokens that count in either video. A partner is
    known where the way back from it ends within one token of the start, its similarity is not below the
    quantile of all candidates', and its two frames have at least `least` known ones.
    """
    places = grid.places()
    ours, theirs = (
        [(mask & (places[:, 0] == t)).nonzero()[:, 0] for t in range(grid.frames)]
        for mask in (shown, shown_there)
    )
    out = torch.full((grid.tokens, grid.frames), -1)
    closeness = torch.full((grid.tokens, grid.frames), -torch.inf)
    for start, (t, goal) in product(ours, enumerate(theirs)):
        if len(start) and len(goal):
            similarity = here[start] @ there[goal].T  # n m
            closeness[start, t], forth = similarity.max(dim=1)
            back = start[similarity.argmax(dim=0)[forth]]
            agrees = (places[back] - places[start]).square().sum(dim=1) <= 1
            out[start, t] = torch.where(agrees, goal[forth], -1)
    candidates = closeness[closeness.isfinite()]
    if len(candidates):
        out[closeness < candidates.quantile(quantile)] = -1
    return known_well(out, grid, least)


def known_well(partners: Tensor, grid: Grid, least: int = LEAST_POINTS) -> Tensor:
    """Partners (N, T) without those in two latent frames that have fewer than `least` in common."""
    by_frame = partners.unflatten(0, (grid.frames, -1))  # T hw T
    enough = (by_frame >= 0).sum(dim=1, keepdim=True) >= least
    return torch.where(enough, by_frame, -1).flatten(0, 1)


def sure_pairs(similarity: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Rows and columns (K,) that are each other's best, surer than `least` in 0..1, the surest last."""
    sureness = similarity.softmax(dim=0) * similarity.softmax(dim=1)
    best, column = sureness.max(dim=1)
    row = torch.arange(len(best))
    kept = ((sureness.argmax(dim=0)[column] == row) & (best > least)).nonzero()[:, 0]
    kept = kept[best[kept].argsort()]
    return kept, column[kept]


def cells(rows: int, columns: int, grid: Grid, edge: int) -> tuple[Tensor, Tensor]:
    """The token of a frame in which each of rows x columns cells lies, and whether it is off the edge."""
    down = ((torch.arange(rows) + 0.5) * grid.height / rows).long()
    right = ((torch.arange(columns) + 0.5) * grid.width / columns).long()
    inner = torch.zeros(rows, columns).bool()
    inner[edge : rows - edge, edge : columns - edge] = True
    return (down[:, None] * grid.width + right).flatten(), inner.flatten()


def by_latent_frame(maps: Tensor, count: int) -> Tensor:
    """Values (F, ...) of frames as means over latent frames (count, ...): the first frame, then groups."""
    assert (len(maps) - 1) % max(count - 1, 1) == 0, "latent frames after the first stand for equal groups"
    groups = maps[1:].unflatten(0, (count - 1, -1)).mean(dim=1) if count > 1 else maps[:0]
    return torch.cat([maps[:1], groups])


def middle_frames(frames: Frames, count: int) -> Frames:
    """The frame in the middle of every latent frame, (count, H, W, 3)."""
    deep = (len(frames) - 1) // max(count - 1, 1)
    return frames[[0, *(1 + deep // 2 + deep * t for t in range(count - 1))]]
