"""How much of an error in latents one sees: some mixes of channels hardly show."""

from __future__ import annotations

import torch
from torch import Tensor

from bachvid.stage.family import AnyVAE

_STEP = 0.1  # of a latent: small beside its spread of 1


@torch.no_grad()
def sight(vae: AnyVAE, video: Tensor, channels: int, least: float) -> Tensor:
    """The matrix S (C, C) with which errors e (C,) in latents, scattered over them, show as |S e|^2.

    It is how the decoder answers to small changes round the latents of videos (B, 3, F, H, W), whose channels
    are at axis `channels`, scaled so that |S e|^2 is on average |e|^2. Mixes of channels that show less than
    `least` of the average count about that much.
    """
    latents = vae.to_latents(video).movedim(channels, 0)  # C, everything else
    chance = torch.Generator().manual_seed(0)
    signs = torch.randint(2, latents.shape[1:], generator=chance).to(latents) * 2 - 1  # so neighbours cancel
    plain = vae.to_video(latents.movedim(0, channels))
    answers = []
    for channel in range(len(latents)):
        moved = latents.clone()
        moved[channel] += _STEP * signs
        answers.append((vae.to_video(moved.movedim(0, channels)) - plain).flatten())
    answer = torch.stack(answers)  # C, pixels
    shown = answer @ answer.mT
    share = torch.eye(len(shown)).to(shown) * least
    shown = (shown / shown.diag().mean() + share) / (1 + least)
    return torch.linalg.cholesky(shown).mT
