"""How the numbers of a training are computed; weights and their averages are float32 whatever is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bachvid.models.attention import NOWHERE, rotate
from bachvid.stage.family import AnyDiT


@dataclass(frozen=True)
class Arithmetic:
    """What a training may trade for speed."""

    compiled: bool = False
    bfloat16: bool = False  # products of matrices; pays where the processor multiplies such numbers itself

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in."""
        return torch.bfloat16 if self.bfloat16 else torch.float32

    def forward(self, model: AnyDiT, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The model's forward of (latents, t, text) on `device`; its answer is float32."""
        predict = torch.compile(model, dynamic=False) if self.compiled else model
        on_cpu = device.type == "cpu"
        attend_at = dict.fromkeys(model.sites, attend_in_products) if self.bfloat16 and on_cpu else NOWHERE

        def forward(latents: Tensor, t: Tensor, text: Tensor) -> Tensor:
            with torch.autocast(device.type, self.dtype, enabled=self.bfloat16):
                return predict(latents, t, text, attend_at).float()

        return forward


EXACT = Arithmetic()


def attend_in_products(q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
    """`attend` (B H Lq D) written out, which with its gradient takes half the time in a CPU's bfloat16."""
    scores = rotate(q, freqs) @ rotate(k, freqs).mT * q.shape[-1] ** -0.5
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
