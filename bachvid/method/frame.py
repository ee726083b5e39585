"""A frame video: what it borrows from the identity, and where."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bachvid.method.attends import Inject, Lend
from bachvid.method.denoiser import Denoiser
from bachvid.method.look import Look
from bachvid.method.match import Matches, Places, match, places
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, believable
from bachvid.models.attention import Attend, Site


class FrameVideo:
    """One of the videos that share the identity's character and place: what it borrows, and where.

    `note` says in one sentence what was left out when a mask could not be believed; otherwise it is None.
    """

    def __init__(self, denoiser: Denoiser, recipe: Recipe, seen: Scouted, identity: Scouted) -> None:
        self.recipe = recipe
        self.identity = identity
        self.take = denoiser.start(seen.take.prompt, seen.take.seed)  # it starts afresh, from the same noise
        self.grid = denoiser.model.grid(self.take.latents)
        self.mask = seen.mask
        self.matches: Matches = match(seen.features, identity.features, self.grid, recipe)
        self.places, self.note = self._settle(seen.believed)
        self.look: Look | None = None  # at what this step shows, if it is to be learnt from

    def _settle(self, believed: bool) -> tuple[Places, str | None]:
        """Where to borrow what; where a mask cannot be believed only the place, by the other video's mask."""
        identity = self.identity
        if believed and identity.believed:
            return places(self.mask, identity.mask, self.matches, self.grid, self.recipe), None
        if identity.believed:
            share = self.mask.float().mean().item()
            why, how, mask = f"its mask covers {share:.1%}", "by the identity's mask", identity.mask
        elif believed:
            why, how, mask = "the identity's mask is not usable", "by its own mask", self.mask
        else:
            why, how, mask = "no mask is usable", "", torch.ones_like(self.mask)
        left = places(mask, mask, None, self.grid, self.recipe)
        some = f"only the background, {how}" if len(left.background) else "nothing"
        return left, f"{why}: it borrows {some}"

    def borrow(self, lend: Lend) -> Mapping[Site, Attend]:
        """What stands in the network for this video, wherever the identity lends."""
        return {site: Inject(lender, self.places, *self.recipe.strengths) for site, lender in lend.items()}

    def watch(self, step: int, attend_at: Mapping[Site, Attend]) -> Mapping[Site, Attend]:
        """`attend_at`, with a look around it at steps after which masks or matches are renewed."""
        if not self.recipe.refresh or step > max(self.recipe.tau_mask, self.recipe.tau_match):
            return attend_at
        self.look = Look(self.recipe, self.take.prompt.spans, self.grid, around=attend_at)
        return self.look.attend_at

    def learn(self, step: int) -> None:
        """After a step that was watched, newer masks and (at tau_match) matches take over (CharaConsist)."""
        look, self.look = self.look, None
        if look is None:
            return
        if step <= self.recipe.tau_mask and believable(mask := look.mask(), self.recipe):
            self.mask = mask
        if step == self.recipe.tau_match:
            self.matches = match(look.features(), self.identity.features, self.grid, self.recipe)
        self.places, self.note = self._settle(believable(self.mask, self.recipe))
