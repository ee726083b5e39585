"""How good a video looks, by the public heads that LAION trained on people's ratings (Eq. 9)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.calibrate.prepare import for_clip
from bachvid.calibrate.pretrained import CLIP, described, load
from bachvid.models.layouts import Rows
from bachvid.models.weights import Weights, WeightsError
from bachvid.pictures.frames import Frames

BATCH = 8  # frames that go through the network at once
NO_HEAD = (
    "{} is no head of LAION's aesthetic predictor, which is one linear layer or several that end in one "
    "value. Name its file as it was published."
)


class Aesthetic:
    """A head's rating of frames as CLIP sees them, prepared as VBench prepares them; about 1 to 10."""

    def __init__(self, head: Path, clip: str = CLIP.usual, device: torch.device | str = "cpu") -> None:
        self.about = f"the aesthetic head {head.name} on {described(CLIP, clip)}"
        self.weight, self.bias = read_head(head)
        self.model = load(CLIP, clip, device)
        self.device = device
        if (width := self.model.config.projection_dim) != len(self.weight):
            raise WeightsError(
                f"The aesthetic head {head} rates {len(self.weight)} features, and {clip} has {width}. "
                f"Name the CLIP that it was trained on: {CLIP.usual}."
            )

    def __call__(self, frames: Frames) -> float:
        """The mean rating of all frames (F, H, W, 3)."""
        features = F.normalize(self._features(frames), dim=-1)  # F C
        return (features.double() @ self.weight + self.bias).mean().item()

    @torch.no_grad()
    def _features(self, frames: Frames) -> Tensor:
        side = self.model.config.image_size
        batches = (frames[start : start + BATCH] for start in range(0, len(frames), BATCH))
        return torch.cat(
            [self.model(for_clip(batch, side).to(self.device)).image_embeds.cpu() for batch in batches]
        )


def read_head(file: Path) -> tuple[Tensor, Tensor]:
    """The linear map of a LAION head, weight (C,) and bias (), in float64.

    Version 1 is one linear layer. Version 2 is five with nothing between them, so it is one as well.
    WeightsError if the file is neither.
    """
    if not file.is_file():
        raise WeightsError(
            f"There is no aesthetic head {file}. Name the file of LAION's aesthetic predictor: "
            "sa_0_4_vit_l_14_linear.pth (version 1), or sac+logos+ava1-l14-linearMSE.pth (version 2)."
        )
    weights = Weights(file)
    layers = sorted({name.rpartition(".")[0] for name in weights.shapes}, key=number_of)
    try:
        weight, bias = read_layer(weights, layers[0])
        for layer in layers[1:]:
            outer, shift = read_layer(weights, layer)
            weight, bias = outer @ weight, outer @ bias + shift
    except (KeyError, IndexError, RuntimeError) as error:
        raise WeightsError(NO_HEAD.format(file)) from error
    if weight.ndim != 2 or len(weight) != 1:
        raise WeightsError(NO_HEAD.format(file))
    return weight[0], bias[0]


def read_layer(weights: Weights, layer: str) -> tuple[Tensor, Tensor]:
    stem = f"{layer}." if layer else ""
    weight, bias = (weights.read(Rows(f"{stem}{part}")).double() for part in ("weight", "bias"))
    return weight, bias


def number_of(layer: str) -> int:
    """The number at the end of a layer's name, such as layers.12; 0 if it has none."""
    found = re.search(r"\d+$", layer)
    return int(found[0]) if found else 0
