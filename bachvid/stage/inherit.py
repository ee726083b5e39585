"""What one family's untrained denoiser can take over from the other's trained one.

Both see the same world, and to attend among a video's tokens means the same in both, so a Wan that begins
with a CogVideoX's blocks shows scenes within minutes. Text, time and the way in and out of its own latents
it learns by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.models.cogvideox import CogVideoX, ModulatedNorm
from bachvid.models.layers import timestep_features
from bachvid.models.wan import Wan


@torch.no_grad()
def inherit(heir: object, trained: object) -> None:
    """Give a Wan the video's side of the blocks of a trained CogVideoX.

    What depends on the time there is its mean over all times here, until the heir has learnt better.
    ValueError for any other two models, and where they differ in layers, heads or width.
    """
    if not (isinstance(heir, Wan) and isinstance(trained, CogVideoX)) or shape(heir) != shape(trained):
        raise ValueError(
            "only a Wan can begin as a CogVideoX, and both need as many layers, heads and channels"
        )
    times = timestep_features(torch.arange(0, 1000, 10), trained.config.width)
    time = F.silu(trained.time_embed(times))  # times time_width
    for block, known in zip(heir.blocks, trained.blocks, strict=True):
        take_over(block, known, time)


def shape(model: Wan | CogVideoX) -> tuple[int, int, int]:
    """What must be equal for blocks to fit."""
    return model.config.layers, model.config.heads, model.config.head_width


def take_over(block: Any, known: Any, time: Tensor) -> None:
    """Give a Wan's block what a CogVideoX's does to the video, at embedded times (n, time_width)."""
    ours, theirs = block.self_attn, known.attention
    order = rotary_order(theirs.norm_q.weight.shape[0])
    for mine, its in ((ours.q, theirs.q), (ours.k, theirs.k)):
        mine.weight.copy_(its.weight.unflatten(0, (theirs.heads, -1))[:, order].flatten(0, 1))
        mine.bias.copy_(its.bias.unflatten(0, (theirs.heads, -1))[:, order].flatten())
    for mine, its in ((ours.norm_q, theirs.norm_q), (ours.norm_k, theirs.norm_k)):
        mine.weight.copy_(its.weight[order].repeat(theirs.heads))
    same = (
        (ours.v, theirs.v),
        (ours.o, theirs.out),
        (block.ffn[0], known.feed_forward.up),
        (block.ffn[2], known.feed_forward.down),
    )
    for mine, its in same:
        mine.load_state_dict(its.state_dict())
    norms = (known.attention_norm, known.feed_forward_norm)
    block.modulation[0] = torch.cat([numbers(norm, time) for norm in norms])


def numbers(known: ModulatedNorm, time: Tensor) -> Tensor:
    """Shift, scale and gate (3, C) for a norm without weights of its own, the mean over embedded times."""
    shift, scale, gate = known.modulation(time).mean(dim=0).unflatten(0, (6, -1))[:3]  # the video's
    weight, bias = known.norm.weight, known.norm.bias
    return torch.stack((bias * (1 + scale) + shift, weight * (1 + scale) - 1, gate))


def rotary_order(head_width: int) -> Tensor:
    """For each channel of a Wan's head the CogVideoX channel that turns with the same axis.

    CogVideoX has more channels for rows and columns; their slowest hardly turn and serve as Wan's slowest
    of time.
    """
    eighth, third = head_width // 8, 2 * (head_width // 6)
    time, rows, columns = torch.arange(head_width).split((2 * eighth, 3 * eighth, 3 * eighth))
    spare = (rows[third:], columns[third:])
    return torch.cat((time, *spare, rows[:third], columns[:third]))
