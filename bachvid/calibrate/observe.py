"""One walk that sees everything: mask scores and best matches at every layer of every step (Section 3.2-3.3).

Identity and frame videos walk without the method, block by block, the identity first. So a layer's matches
are found while the identity's output of that layer is still there: nothing as large as a feature is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bachvid.method.attends import Feature, TextMass
from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.match import feature_of, match
from bachvid.method.recipe import Recipe
from bachvid.method.scout import look_at
from bachvid.method.together import Pass, forward
from bachvid.models.attention import Attend, Site, attend
from bachvid.models.grid import Grid
from bachvid.sampling.loop import denoise


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen of V videos of N tokens, the identity first, in S steps at L layers."""

    scores: Tensor  # V S L 2 N float16: see `mask.span_scores`; 1 is the average attention to a token
    partner: Tensor  # V-1 S L N int32: the identity's token that each matches in its own latent frame
    trajectory: Tensor  # V S+1 ...: the latents before every step, and at the end


class Nearest:
    """Attends plainly and keeps the identity's token most like each by this layer alone (Eq. 5-6)."""

    def __init__(self, identity: Feature, grid: Grid, recipe: Recipe) -> None:
        self.identity = identity  # has just passed this site
        self.grid = grid
        self.recipe = replace(recipe, window="frame")

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        out = attend(q, k, v, freqs)  # 1 H L D
        here = feature_of(out, self.grid.tokens, normalize=True)
        self.partner = match([here], [self.identity.value], self.grid, self.recipe).partner  # N
        return out


def observe(denoiser: Denoiser, recipe: Recipe, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Observed:
    """What can be seen of these videos, the identity's prompt first; they are the vanilla videos."""
    takes = [denoiser.start(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    seen: list[tuple[Tensor, Tensor]] = []
    trajectory = [torch.stack([take.latents[0] for take in takes])]

    def predict(rows: Sequence[Take], step: int) -> list[Tensor]:
        witness = Witness(denoiser, recipe, [row.prompt for row in rows])
        passes = [
            Pass(row.latents, row.prompt.text, at) for row, at in zip(rows, witness.attend_at, strict=True)
        ]
        conditional = forward(denoiser.model, denoiser.timestep(step), passes)
        seen.append(witness.seen())
        return denoiser.guide(rows, step, conditional)

    for _ in denoise(predict, takes, denoiser.sampler):
        trajectory.append(torch.stack([take.latents[0] for take in takes]))
    scores, partner = (torch.stack(parts, dim=1).cpu() for parts in zip(*seen, strict=True))
    return Observed(scores, partner, torch.stack(trajectory, dim=1).cpu())


class Witness:
    """Stands at every site of one step's passes, the identity's first, and changes nothing."""

    def __init__(self, denoiser: Denoiser, recipe: Recipe, prompts: Sequence[Prompt]) -> None:
        grid = denoiser.model.grid(torch.empty(denoiser.shape, device="meta"))
        tokens, words = (
            [site for site in denoiser.model.sites if site.kind == kind]
            for kind in (recipe.token_kind, recipe.mask_kind)
        )
        identity = Feature(grid.tokens, normalize=True)  # one for all layers: each overwrites the last
        self.masses: list[list[TextMass]] = []
        self.nearest: list[list[Nearest]] = []
        self.attend_at: list[dict[Site, Attend]] = []
        for n, prompt in enumerate(prompts):
            at: dict[Site, Attend] = dict.fromkeys(tokens, identity)
            if n:
                self.nearest.append([Nearest(identity, grid, recipe) for _ in tokens])
                at = dict(zip(tokens, self.nearest[-1], strict=True))
            self.masses.append(
                [
                    TextMass(prompt.spans, grid.tokens, at.get(site, attend), recipe.mask_softmax)
                    for site in words
                ]
            )
            self.attend_at.append(at | dict(zip(words, self.masses[-1], strict=True)))
        self.tokens = grid.tokens

    def seen(self) -> tuple[Tensor, Tensor]:
        """Scores (V, L, 2, N) and partners (V - 1, L, N) of the passes that have gone through."""
        scores = torch.stack([torch.stack([mass.scores for mass in row]) for row in self.masses])
        partner = torch.stack([torch.stack([near.partner for near in row]) for row in self.nearest])
        return (scores * self.tokens).half(), partner.int()


def fused_partners(
    denoiser: Denoiser, recipe: Recipe, prompts: Sequence[Prompt], trajectory: Tensor
) -> Tensor:
    """The partners (V-1, S, N) that all match layers of the recipe find together (Eq. 7-8) at every step."""
    steps = []
    for step in range(denoiser.steps):
        latents = trajectory[:, step].to(denoiser.negative.device)
        identity, *frames = (
            look_at(denoiser, recipe, prompt, row[None], step, masks=False).features()
            for prompt, row in zip(prompts, latents, strict=True)
        )
        grid = denoiser.model.grid(latents[:1])
        steps.append(torch.stack([match(frame, identity, grid, recipe).partner for frame in frames]))
    return torch.stack(steps, dim=1).int().cpu()
