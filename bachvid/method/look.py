"""One look at a video in the making: its foreground mask and its features, from one pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bachvid.method.attends import Feature, TextMass
from bachvid.method.mask import Spans, foreground, smooth
from bachvid.method.match import Features
from bachvid.method.recipe import Recipe
from bachvid.models.attention import NOWHERE, Attend, Site, attend
from bachvid.models.grid import Grid


class Look:
    """Stands where a recipe reads masks and features, around what stands there already, and changes nothing.

    Without `masks` or without `features` those are not read.
    """

    def __init__(
        self,
        recipe: Recipe,
        spans: Spans,
        grid: Grid,
        around: Mapping[Site, Attend] = NOWHERE,
        *,
        masks: bool = True,
        features: bool = True,
    ) -> None:
        self.recipe = recipe
        self.spans = spans
        self.grid = grid
        at = dict(around)
        self.outputs = {
            site: Feature(grid.tokens, recipe.normalize, at.get(site, attend))
            for site in recipe.match_sites * features
        }
        at |= self.outputs
        self.masses = {
            site: TextMass(spans, grid.tokens, at.get(site, attend), recipe.mask_softmax)
            for site in recipe.mask_sites * masks
        }
        self.attend_at: Mapping[Site, Attend] = at | self.masses

    def mask(self) -> Tensor:
        """The foreground (N,) bool, from the scores of all mask layers together (Eq. 4)."""
        scores = sum((mass.scores for mass in self.masses.values()), start=self.spans.character.new_zeros(()))
        mask = foreground(scores, self.recipe.mask_split)
        return smooth(mask, self.grid) if self.recipe.smooth else mask

    def features(self) -> Features:
        """What all match layers show, ready for `match` (Eq. 7)."""
        return [output.value for output in self.outputs.values()]

    def last_layer(self) -> int:
        """The last layer a pass must reach for this look to be complete."""
        return max(site.layer for site in (*self.masses, *self.outputs))
