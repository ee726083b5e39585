"""A denoiser with all that a step needs beside the videos: sampler, guidance, and the negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bachvid.method.mask import Spans
from bachvid.method.together import Pass, forward
from bachvid.models.parts import Model
from bachvid.sampling.guidance import Guidance, combine, static
from bachvid.sampling.loop import Row, start
from bachvid.sampling.sampler import Sampler


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt (1, L, text_width), the spans of its parts, and how it read."""

    text: Tensor
    spans: Spans
    wording: str = ""


@dataclass(eq=False, kw_only=True)
class Take(Row):
    """A row that knows what it is a video of."""

    prompt: Prompt
    seed: int


@dataclass(eq=False)
class Denoiser:
    """Guided predictions (of v, or of velocity) for videos at batch 1, one branch of guidance at a time."""

    model: Model
    sampler: Sampler
    negative: Tensor  # the encoded negative prompt (1, L, text_width)
    shape: tuple[int, ...]  # of one video's latents, batch 1
    scale: float = 6.0
    guidance: Guidance = static
    wide: Literal["predictions", "latents"] = "predictions"  # what is float32, whatever the model's dtype
    _openings: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        return len(self.sampler.schedule.timesteps)

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch is needed at all; at a scale of 1 or less it is not."""
        return self.scale > 1

    def start(self, prompt: Prompt, seed: int) -> Take:
        """A video before its first step: the noise of this seed."""
        dtype = torch.float32 if self.wide == "latents" else self.negative.dtype
        row = start(self.shape, seed, dtype, self.negative.device)
        return Take(row.latents, row.generator, prompt=prompt, seed=seed)

    def timestep(self, step: int) -> Tensor:
        """t (1,), as the model is told it."""
        return torch.tensor([self.sampler.schedule.timesteps[step]], device=self.negative.device)

    def vanilla(self, takes: Sequence[Take], step: int) -> list[Tensor]:
        """Guided predictions without any method, one for each take."""
        passes = [Pass(take.latents, take.prompt.text) for take in takes]
        return self.guide(takes, step, forward(self.model, self.timestep(step), passes))

    def guide(
        self,
        takes: Sequence[Take],
        step: int,
        conditional: Sequence[Tensor],
        unconditional: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Guided predictions; the unconditional branch is evaluated unless it is given."""
        if not self.guided:
            return self._finite(step, self._widened(conditional))
        if unconditional is None:
            unconditional = [self.unconditional(take, step) for take in takes]
        scale = self.guidance(self.scale, self.sampler.schedule.timesteps[step], self.steps)
        pairs = zip(self._widened(unconditional), self._widened(conditional), strict=True)
        return self._finite(step, [combine(uncond, cond, scale) for uncond, cond in pairs])

    def unconditional(self, take: Take, step: int) -> Tensor:
        """The prediction for the negative prompt; at step 0 it depends on the seed alone and is made once."""
        if step == 0 and take.seed in self._openings:
            return self._openings[take.seed]
        (prediction,) = forward(self.model, self.timestep(step), [Pass(take.latents, self.negative)])
        if step == 0:
            self._openings[take.seed] = prediction
        return prediction

    def _widened(self, predictions: Sequence[Tensor]) -> list[Tensor]:
        """The predictions in the dtype that guidance and the solver want."""
        return [p.float() if self.wide == "predictions" else p for p in predictions]

    def _finite(self, step: int, predictions: list[Tensor]) -> list[Tensor]:
        """The predictions; FloatingPointError where they hold inf or NaN."""
        if not all(prediction.isfinite().all() for prediction in predictions):
            raise FloatingPointError(
                f"the prediction of step {step} is not finite; try --dtype fp32 or less --guidance"
            )
        return predictions
