"""What a calibration will cost, told before it starts."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from bachvid.models.checkpoint import Checkpoint
from bachvid.models.parts import Model

ROWS = (
    10  # hidden states that a video in the network holds at once: streams, q, k, v, the widened feed-forward
)


class Cost(NamedTuple):
    """Forwards of one video through the denoiser, one branch of guidance each, and what they take."""

    tokens: int
    forward: float  # floating-point operations of one
    observe: int  # forwards: every vanilla video, seen everywhere
    fuse: int  # every step again, conditional branch, for all match layers together (at most)
    leave_out: int  # a video for every layer
    check: int  # groups made with the chosen layers, and with others
    disk: int  # bytes
    memory: int  # bytes: weights and what passes through the network, without text encoder and autoencoder

    @property
    def forwards(self) -> int:
        return self.observe + self.fuse + self.leave_out + self.check

    def minutes(self, flops: float) -> float:
        """The time it all takes at `flops` floating-point operations a second."""
        return self.forwards * self.forward / flops / 60

    def sentence(self, flops: float) -> str:
        """The cost for people."""
        minutes = f"{self.minutes(flops):,.0f} minutes at {flops / 1e12:g} TFLOP/s"
        parts = f"{self.observe:,} to observe, {self.fuse:,} to fuse, {self.leave_out:,} without a layer"
        return (
            f"{self.forwards:,} forwards of {self.tokens:,} tokens ({parts}, {self.check:,} to check), "
            f"{self.forward / 1e12:,.3g} TFLOP each: {minutes}; "
            f"{self.disk / 1e9:.2f} GB on disk, {self.memory / 1e9:.1f} GB for the denoiser, "
            "beside text encoder and autoencoder"
        )


def estimate(
    checkpoint: Checkpoint,
    steps: int,
    groups: int,
    videos: int,
    left_out: int,
    checked: int,
    dtype: torch.dtype,
) -> Cost:
    """The cost of calibrating on `groups` groups of `videos` videos, `left_out` of them without each layer.

    `checked` groups are made twice by the closing check. Arithmetic is counted on the model's outline, with
    both branches of guidance; nothing is loaded.
    """
    own, model = checkpoint.format, checkpoint.outline()
    shape = checkpoint.latent_shape(own.size, own.frames)
    latents = torch.empty(shape, device="meta")
    tokens, layers = model.grid(latents).tokens, len(model.blocks)
    width = checkpoint.config.heads * checkpoint.config.head_width
    weights = sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    maps = videos * layers * 2 * tokens * 2 + (videos - 1) * layers * tokens * 4
    trajectory = videos * (steps + 1) * prod(shape) * 4
    return Cost(
        tokens=tokens,
        forward=flops_of(checkpoint, model, latents),
        observe=groups * videos * steps * 2,
        fuse=groups * videos * steps,
        leave_out=left_out * layers * steps * 2,
        check=2 * checked * (videos - 1) * steps * 2,
        disk=groups * (steps * maps + trajectory),
        memory=(weights + videos * ROWS * tokens * width) * dtype.itemsize,
    )


def flops_of(checkpoint: Checkpoint, model: Model, latents: torch.Tensor) -> float:
    """Floating-point operations of one forward, a multiplication with its addition counted as two."""
    text = torch.empty(1, checkpoint.text_length, checkpoint.config.text_width, device="meta")
    with FlopCounterMode(display=False) as counter:
        stream = model.begin(latents, torch.zeros(1, device="meta"), text)
        for block in model.blocks:
            stream = block(stream, {})
        model.finish(stream)
    return float(counter.get_total_flops())
