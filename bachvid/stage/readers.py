"""What a clip shows, read from its pixels and nothing else: mask, body coordinates, every stated and hidden attribute.

Readers abstain (None) rather than guess. They never see a prompt, a seed or a latent, and they read a renderer's clip,
a decoded one and a generated one alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bachvid.stage.body import dyes
from bachvid.stage.read_puppet import read_puppet
from bachvid.stage.read_stage import read_stage
from bachvid.stage.silhouette import Action, action_of, follow, silhouette
from bachvid.stage.world import Clip


@dataclass(frozen=True)
class Reading:
    """One clip as read; a value the pixels do not give is None.

    `mask` (F, H, W) bool; `uv` (F, H, W, 2), body coordinates in heights of the picture at scale 1, `known` (F, H, W)
    where they are; `stated` and `hidden` by the names of `Clip`; `badge` the colours of its four cells; `cells` the
    states of the horizon's, the sky's and the front's slots; `off_palette` the share of pixels in no colour of the world.
    `clip` is the nearest clip of the world, None without a puppet in every frame.
    """

    mask: np.ndarray
    uv: np.ndarray
    known: np.ndarray
    stated: dict[str, str | None]
    hidden: dict[str, Any]
    badge: tuple[int | None, ...]
    cells: tuple[int | None, ...]
    action: Action
    off_palette: float
    clip: Clip | None
