"""A frame video: what it borrows from the identity, and where."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bachvid.method.attends import Inject, Lend
from bachvid.method.denoiser import Denoiser
from bachvid.method.look import Look
from bachvid.method.match import Features, Matches, Places, match, places
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, believable, features_of
from bachvid.models.attention import Attend, Site


class FrameVideo:
    """One of the videos that share the identity's character and place: what it borrows, and where.

    `note` says in one sentence what was left out when a mask could not be believed; otherwise it is None.
    """

    def __init__(self, denoiser: Denoiser, recipe: Recipe, seen: Scouted, identity: Scouted) -> None:
        self.denoiser = denoiser
        self.recipe = recipe
        self.identity = identity
        self.take = denoiser.start(seen.take.prompt, seen.take.seed)  # it starts afresh, from the same noise
        self.grid = denoiser.model.grid(self.take.latents)
        self.mask = seen.mask
        self.matches = self._match(features_of(denoiser, recipe, seen))
        self.places, self.note = self._settle(seen.believed)
        self.look: Look | None = None  # at what this step shows, if it is to be learnt from

    def _match(self, features: Features) -> Matches:
        there = features_of(self.denoiser, self.recipe, self.identity)
        return match(features, there, self.grid, self.recipe)

    def _settle(self, believed: bool) -> tuple[Places, str | None]:
        """Where to borrow what. Without a mask of its own only the place; without the identity's nothing.

        For where the identity's character stands nobody knows then, and it would be borrowed as a place.
        """
        mask = self.identity.mask
        if not self.identity.believed:
            nowhere = torch.ones_like(mask)
            left = places(nowhere, nowhere, None, self.grid, self.recipe)
            return left, "the identity's mask is not usable: it borrows nothing"
        if not believed:
            left, share = places(mask, mask, None, self.grid, self.recipe), self.mask.float().mean().item()
            some = "only the background, by the identity's mask" if len(left.background) else "nothing"
            return left, f"its mask covers {share:.1%}: it borrows {some}"
        return places(self.mask, mask, self.matches, self.grid, self.recipe), None

    def borrow(self, step: int, lend: Lend) -> Mapping[Site, Attend]:
        """What stands in the network for this video at a step, wherever the identity lends."""
        here = self.places.only(self.recipe.mode_at(step))
        return {site: Inject(lender, here, *self.recipe.strengths) for site, lender in lend.items()}

    def watch(self, step: int, attend_at: Mapping[Site, Attend]) -> Mapping[Site, Attend]:
        """`attend_at`, with a look around it at steps after which masks or matches are renewed."""
        recipe = self.recipe
        masks, features = step <= recipe.tau_mask, step == recipe.tau_match
        if not recipe.refresh or not (masks or features):
            return attend_at
        spans = self.take.prompt.spans
        self.look = Look(recipe, spans, self.grid, attend_at, masks=masks, features=features)
        return self.look.attend_at

    def learn(self, step: int) -> None:
        """After a step that was watched, newer masks and (at tau_match) matches take over (CharaConsist)."""
        look, self.look = self.look, None
        if look is None:
            return
        if step <= self.recipe.tau_mask and believable(mask := look.mask(), self.recipe):
            self.mask = mask
        if step == self.recipe.tau_match:
            self.matches = self._match(look.features())
        self.places, self.note = self._settle(believable(self.mask, self.recipe))
