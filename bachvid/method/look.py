"""One look at a video in the making: its foreground mask and its features, from one pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bachvid.method.attends import Output, TextMass
from bachvid.method.mask import Spans, foreground, smooth
from bachvid.method.match import features_of
from bachvid.method.recipe import Recipe
from bachvid.models.attention import NOWHERE, Attend, Site, attend
from bachvid.models.grid import Grid


class Look:
    """Stands at a recipe's mask and match sites, around what stands there already, and changes nothing."""

    def __init__(
        self, recipe: Recipe, spans: Spans, grid: Grid, around: Mapping[Site, Attend] = NOWHERE
    ) -> None:
        self.recipe = recipe
        self.spans = spans
        self.grid = grid
        at = dict(around)
        self.outputs = {site: Output(at.get(site, attend)) for site in recipe.match_sites}
        at |= self.outputs
        self.masses = {
            site: TextMass(spans, grid.tokens, at.get(site, attend), recipe.mask_softmax)
            for site in recipe.mask_sites
        }
        self.attend_at: Mapping[Site, Attend] = at | self.masses

    def mask(self) -> Tensor:
        """The foreground (N,) bool, from the scores of all mask layers together (Eq. 4)."""
        scores = sum((mass.scores for mass in self.masses.values()), start=self.spans.character.new_zeros(()))
        mask = foreground(scores, self.recipe.mask_split)
        return smooth(mask, self.grid) if self.recipe.smooth else mask

    def features(self) -> Tensor:
        """The outputs of all match layers (layers, N, C), ready for `match` (Eq. 7)."""
        outs = [output.out for output in self.outputs.values()]
        return features_of(outs, self.grid.tokens, self.recipe.normalize)

    def last_layer(self) -> int:
        """The last layer a pass must reach for this look to be complete."""
        return max(*self.recipe.mask_layers, *self.recipe.match_layers)
