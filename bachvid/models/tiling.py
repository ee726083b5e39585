"""Big pictures through a video autoencoder in overlapping tiles: little memory, and seams faded away."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tiles(NamedTuple):
    """How one axis is cut. The tiles fit together if `stride` lines of input make `keep` lines of output."""

    size: int  # input lines in a tile
    stride: int  # input lines from one tile to the next
    fade: int  # output lines over which the tile before fades out
    keep: int  # output lines of a tile that stay; the next tile has the others


def run_in_tiles(run: Callable[[Tensor], Tensor], rows: Tiles, columns: Tiles, x: Tensor) -> Tensor:
    """`run(x)`, put together from `run` of tiles of x (..., H, W); just `run(x)` where one tile holds it all.

    A tile is faded into the finished one above it, then into the finished one to its left. Agrees with
    `tiled_encode` and `tiled_decode` of diffusers' CogVideoX autoencoder.
    """
    height, width = x.shape[-2:]
    if height <= rows.size and width <= columns.size:
        return run(x)
    strips: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, height, rows.stride):
        here: list[Tensor] = []
        for column, left in enumerate(range(0, width, columns.stride)):
            tile = run(x[..., top : top + rows.size, left : left + columns.size])
            if above:
                tile = _fade(above[column], tile, rows.fade, dim=-2)
            if here:
                tile = _fade(here[-1], tile, columns.fade, dim=-1)
            here.append(tile)
        strips.append(torch.cat([tile[..., : rows.keep, : columns.keep] for tile in here], dim=-1))
        above = here
    return torch.cat(strips, dim=-2)


def _fade(before: Tensor, tile: Tensor, lines: int, dim: int) -> Tensor:
    """`tile`, its first lines along `dim` mixed linearly with the last ones of the tile before it."""
    lines = min(lines, before.shape[dim], tile.shape[dim])  # tiles at the right and lower border may be short
    old = before.narrow(dim, before.shape[dim] - lines, lines)
    new, rest = tile.split((lines, tile.shape[dim] - lines), dim)
    step = torch.arange(lines, device=tile.device)
    step = step[:, None] if dim == -2 else step
    # Float32 weights whatever the dtype, and each product rounded: what diffusers does, line by line.
    old = (old * ((lines - step) / lines)).to(tile.dtype)
    new = (new * (step / lines)).to(tile.dtype)
    return torch.cat((old + new, rest), dim)
