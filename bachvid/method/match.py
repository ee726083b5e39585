"""Which identity token each frame token matches (Eq. 5-8), and what is borrowed where (Eq. 10-11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.method.mask import grow
from bachvid.method.recipe import Recipe
from bachvid.models.grid import Grid


class Matches(NamedTuple):
    """For each token of a frame video, the identity token most like it."""

    partner: Tensor  # N int64
    similarity: Tensor  # N float32, mean over the layers


def features_of(outputs: list[Tensor], tokens: int, normalize: bool) -> Tensor:
    """Features (layers, N, C) of a video: its attention outputs (1 H L D) with the heads joined.

    With `normalize` every layer counts as a cosine (Eq. 5).
    """
    layers = [out[0, :, -tokens:].transpose(0, 1).flatten(1) for out in outputs]  # N C each
    if normalize:
        layers = [F.normalize(layer.float(), dim=-1).to(layer.dtype) for layer in layers]
    return torch.stack(layers)


def match(frame: Tensor, identity: Tensor, grid: Grid, recipe: Recipe, rows: int = 1024) -> Matches:
    """The best identity token for every frame token (Eq. 7-8), for features (layers, N, C) of the two videos.

    With the window "frame" it is sought in the same latent frame only (Eq. 6). Similarities are taken in
    blocks of `rows` tokens and only the best is kept: no matrix of N x N exists, and no float32 copy of
    more than one layer.
    """
    if recipe.window == "frame":
        per_frame = grid.height * grid.width
        blocks = zip(frame.split(per_frame, dim=1), identity.split(per_frame, dim=1), strict=True)
        found = [_best(f, i, rows) for f, i in blocks]
        index = torch.cat([best + n * per_frame for n, (best, _) in enumerate(found)])
        value = torch.cat([value for _, value in found])
    else:
        index, value = _best(frame, identity, rows)
    return Matches(index, value / len(recipe.match_layers))


def _best(frame: Tensor, identity: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    blocks = [_similarity(block, identity).max(dim=1) for block in frame.split(rows, dim=1)]
    return torch.cat([b.indices for b in blocks]), torch.cat([b.values for b in blocks])


def _similarity(frame: Tensor, identity: Tensor) -> Tensor:
    """Dot products (n, N) of every token with every other, summed over the layers (Eq. 7)."""
    products = (f.float() @ i.float().T for f, i in zip(frame, identity, strict=True))
    return sum(products, start=frame.new_zeros((), dtype=torch.float32))


@dataclass(frozen=True)
class Places:
    """What a frame video borrows, and where it goes: flat token indices, int64."""

    tokens: int  # N
    foreground: Tensor  # tokens of the frame video that show the character: they see what is borrowed for it
    rest: Tensor  # all other tokens: they see the borrowed background
    matched: Tensor  # I_frm,fg: where borrowed foreground goes
    partners: Tensor  # I_id,fg: where it comes from
    background: Tensor  # I_frm,bg = I_id,bg


def places(frame: Tensor, identity: Tensor, matches: Matches | None, grid: Grid, recipe: Recipe) -> Places:
    """The index sets of Eq. 10-11, for masks (N,) bool of the frame video and the identity.

    Foreground needs matches and is left out in mode "bg", background in mode "fg", and both in mode "off".
    Tokens within the recipe's margin around either foreground are no background to borrow.
    """
    mode, nothing = recipe.mode, frame.new_zeros(0, dtype=torch.int64)
    matched = partners = nothing
    if matches and mode in ("both", "fg"):
        matched = _accepted(frame, identity, matches, recipe).nonzero()[:, 0]
        partners = matches.partner[matched]
    background = nothing
    if mode in ("both", "bg"):
        background = (~grow(identity | frame, grid, recipe.margin)).nonzero()[:, 0]
    return Places(
        tokens=len(frame),
        foreground=frame.nonzero()[:, 0],
        rest=(~frame).nonzero()[:, 0],
        matched=matched,
        partners=partners,
        background=background,
    )


def _accepted(frame: Tensor, identity: Tensor, matches: Matches, recipe: Recipe) -> Tensor:
    accepted = frame
    if recipe.min_similarity is not None:
        accepted = accepted & (matches.similarity >= recipe.min_similarity)
    if recipe.require_identity_foreground:
        accepted = accepted & identity[matches.partner]
    return accepted
