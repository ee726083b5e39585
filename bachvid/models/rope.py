"""Positions: rotary tables for a grid of tokens, and the sin-cos embedding that CogVideoX-2B adds instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THETA = 10000.0


def rotary_table(
    positions: Sequence[Tensor], widths: Sequence[int], lead: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Cosines and sines (lead + N, D/2, 2) for every token of the box `positions` span, first axis slowest.

    `positions` holds one vector per axis, on the CPU, where angles are computed in their dtype (not every
    device knows float64); the table is float32 and on `device`. `widths` holds the channels that each axis
    takes (their sum is D). The first `lead` rows are for text that shares the sequence: cosine 1 and sine 0
    leave it untouched, bit for bit. Agrees with diffusers' `get_3d_rotary_pos_embed` (CogVideoX, float32)
    and `WanRotaryPosEmbed` (float64).
    """
    box = [len(p) for p in positions]
    parts = []
    for axis, (position, width) in enumerate(zip(positions, widths, strict=True)):
        powers = torch.arange(0, width, 2, dtype=position.dtype) / width
        angles = torch.outer(position, 1.0 / THETA**powers)  # n width/2
        shape = [1] * len(box) + [width // 2, 2]
        shape[axis] = box[axis]
        turns = torch.stack((angles.cos(), angles.sin()), -1).float().to(device)  # n width/2 2
        parts.append(turns.view(shape).expand(*box, -1, -1))
    table = torch.cat(parts, dim=-2).flatten(0, -3)  # N D/2 2
    still = table.new_tensor((1.0, 0.0)).expand(lead, table.shape[1], 2)
    return torch.cat((still, table))


def resized_positions(size: tuple[int, int], base: tuple[int, int]) -> list[Tensor]:
    """Row and column positions that fit a grid of `size` (rows, columns) into the trained `base` grid.

    The grid is scaled to touch the base's nearer border and centred in it. The last position is stop * (n -
    1) / n, not start + length * (n - 1) / n; rounding is to even. Agrees with diffusers'
    `get_resize_crop_region_for_grid`.
    """
    height, width = size
    if height / width > base[0] / base[1]:
        fitted = (base[0], round(base[0] / height * width))
    else:
        fitted = (round(base[1] / width * height), base[1])
    positions = []
    for count, full, length in zip(size, base, fitted, strict=True):
        start = round((full - length) / 2.0)
        stop = (start + length) * (count - 1) / count
        positions.append(torch.linspace(start, stop, count, dtype=torch.float32))
    return positions


def sincos_table(
    box: tuple[int, int, int], width: int, scales: tuple[float, float], lead: int, like: Tensor
) -> Tensor:
    """The additive positions (lead + N, C) of a (frames, rows, columns) box; `lead` rows are zero.

    A quarter of the channels encodes the frame, three eighths the column, three eighths the row; `scales`
    divide the frame index and the spatial indices. Each axis is computed in float64 on the CPU; the table
    has the dtype and the device of `like`. Agrees with diffusers' `get_3d_sincos_pos_embed`.
    """
    frames, rows, columns = (torch.arange(n, dtype=torch.float32) for n in box)
    temporal, spatial = scales
    parts = [
        _sincos(frames / temporal, width // 4)[:, None, None, :],
        _sincos(columns / spatial, 3 * width // 8)[None, None, :, :],
        _sincos(rows / spatial, 3 * width // 8)[None, :, None, :],
    ]
    table = torch.cat([p.to(like).expand(*box, -1) for p in parts], dim=-1).flatten(0, 2)  # N C
    return torch.cat((table.new_zeros(lead, width), table))


def _sincos(position: Tensor, width: int) -> Tensor:
    powers = torch.arange(width // 2, dtype=torch.float64) / (width / 2.0)
    angles = torch.outer(position, 1.0 / THETA**powers)  # n width/2
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
