"""Which identity token each frame token matches (Eq. 5-8), and what is borrowed where (Eq. 10-11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.method.mask import grow
from bachvid.method.recipe import Mode, Recipe
from bachvid.models.grid import Grid


class Matches(NamedTuple):
    """For each token of a frame video, the identity token most like it."""

    partner: Tensor  # N int64
    similarity: Tensor  # N float32, mean over the layers


Features = Sequence[Tensor]  # of a video: (N, C) for each match layer


def feature_of(out: Tensor, tokens: int, normalize: bool) -> Tensor:
    """The feature (N, C) of a video at one layer: its attention output (1 H L D) with the heads joined.

    With `normalize` the layer counts as a cosine (Eq. 5).
    """
    feature = out[0, :, -tokens:].transpose(0, 1).flatten(1)
    return F.normalize(feature.float(), dim=-1).to(out.dtype) if normalize else feature


def match(frame: Features, identity: Features, grid: Grid, recipe: Recipe, rows: int = 1024) -> Matches:
    """The best identity token for every frame token (Eq. 7-8), for the features of the two videos.

    With the window "frame" it is sought in the same latent frame only (Eq. 6). Similarities are taken in
    blocks of `rows` tokens and only the best is kept: no matrix of N x N exists, and no float32 copy of
    more than one layer.
    """
    window = grid.height * grid.width if recipe.window == "frame" else grid.tokens
    index, value = [], []
    for n, (here, there) in enumerate(zip(_cut(frame, window), _cut(identity, window), strict=True)):
        for block in _cut(here, rows):
            best = _similarity(block, there).max(dim=1)
            index.append(best.indices + n * window)
            value.append(best.values)
    return Matches(torch.cat(index), torch.cat(value) / len(recipe.match_layers))


def _cut(features: Features, tokens: int) -> list[Features]:
    """The features of so many tokens at a time."""
    return list(zip(*(layer.split(tokens) for layer in features), strict=True))


def _similarity(frame: Features, identity: Features) -> Tensor:
    """Dot products (n, N) of every token with every other, summed over the layers (Eq. 7)."""
    products = (f.float() @ i.float().T for f, i in zip(frame, identity, strict=True))
    return sum(products, start=torch.zeros((), device=frame[0].device))


@dataclass(frozen=True)
class Places:
    """What a frame video borrows, and where it goes: flat token indices, int64."""

    tokens: int  # N
    foreground: Tensor  # tokens of the frame video that show the character: they see what is borrowed for it
    rest: Tensor  # all other tokens: they see the borrowed background
    matched: Tensor  # I_frm,fg: where borrowed foreground goes
    partners: Tensor  # I_id,fg: where it comes from
    background: Tensor  # I_frm,bg = I_id,bg

    def only(self, mode: Mode) -> Places:
        """The same in a mode: in "bg" no foreground is borrowed, in "fg" no background, in "off" neither."""
        fg, bg, nothing = mode in ("both", "fg"), mode in ("both", "bg"), self.matched[:0]
        return replace(
            self,
            matched=self.matched if fg else nothing,
            partners=self.partners if fg else nothing,
            background=self.background if bg else nothing,
        )


def places(frame: Tensor, identity: Tensor, matches: Matches | None, grid: Grid, recipe: Recipe) -> Places:
    """The index sets of Eq. 10-11, for masks (N,) bool of the frame video and the identity.

    Foreground needs matches, and what the recipe's mode leaves out is left out. Tokens within its margin
    around either foreground are no background to borrow.
    """
    matched = partners = frame.new_zeros(0, dtype=torch.int64)
    if matches:
        matched = _accepted(frame, identity, matches, recipe).nonzero()[:, 0]
        partners = matches.partner[matched]
    whole = Places(
        tokens=len(frame),
        foreground=frame.nonzero()[:, 0],
        rest=(~frame).nonzero()[:, 0],
        matched=matched,
        partners=partners,
        background=(~grow(identity | frame, grid, recipe.margin)).nonzero()[:, 0],
    )
    return whole.only(recipe.mode)


def _accepted(frame: Tensor, identity: Tensor, matches: Matches, recipe: Recipe) -> Tensor:
    accepted = frame
    if recipe.min_similarity is not None:
        accepted = accepted & (matches.similarity >= recipe.min_similarity)
    if recipe.require_identity_foreground:
        accepted = accepted & identity[matches.partner]
    return accepted
