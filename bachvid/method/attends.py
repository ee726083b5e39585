"""What stands at sites: Record and Feature keep what passed, TextMass scores the mask, Inject borrows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.method.mask import Keys, Spans, span_scores
from bachvid.method.match import Places, feature_of
from bachvid.models.attention import Attend, Site, attend, rotate


class Lent(NamedTuple):
    """What the identity lends at a site: its keys before and after rotation, and its values (1 H L D)."""

    k: Tensor
    rotated: Tensor
    v: Tensor


Lend = Mapping[Site, Callable[[], Lent]]  # what may be asked for at each vital layer


class Feature:
    """Attends as `inner` does and keeps the feature (N, C) of the output that passed last (Eq. 5)."""

    def __init__(self, tokens: int, normalize: bool, inner: Attend = attend) -> None:
        self.tokens = tokens
        self.normalize = normalize
        self.inner = inner

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        out = self.inner(q, k, v, freqs)  # 1 H Lq D
        self.value = feature_of(out, self.tokens, self.normalize)
        return out


class Record:
    """Attends plainly and keeps the keys and values that passed last."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        self.k, self.v, self.freqs = k, v, freqs
        return attend(q, k, v, freqs)

    def lend(self) -> Lent:
        """The keys and values of the site passed last."""
        return Lent(self.k, rotate(self.k, self.freqs), self.v)


class TextMass:
    """Attends as `inner` does and keeps the scores (2, N) of the mask at the site passed last (Eq. 2-3)."""

    def __init__(self, spans: Spans, tokens: int, inner: Attend = attend, over: Keys = "all") -> None:
        self.spans = spans
        self.tokens = tokens
        self.inner = inner
        self.over = over

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        turned = rotate(q, freqs), rotate(k, freqs)
        self.scores = span_scores(*turned, self.spans, self.tokens, self.over)  # 2 N
        return self.inner(q, k, v, freqs)


class Inject:
    """Attends to the row's own tokens and, where `places` says so, to the identity's (Eq. 12-14).

    Each query has one softmax over one of three key sets: text sees its own row, the foreground also the
    borrowed foreground, all other video tokens also the borrowed background. The sets are overlapping
    slices of one buffer `[K_fg | K_own | K_bg]`, so three plain attention calls do it, and no matrix of N x
    N exists. In that softmax a borrowed key of the foreground counts `strength` times as much as an own one,
    one of the background `bg_strength` times.
    """

    def __init__(
        self,
        lend: Callable[[], Lent],
        places: Places,
        strength: float = 1.0,
        bg_strength: float = 1.0,
    ) -> None:
        self.lend = lend
        self.places = places
        self.strength = strength
        self.bg_strength = bg_strength

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        p = self.places
        if not len(p.matched) and not len(p.background):
            return attend(q, k, v, freqs)
        lead = q.shape[2] - p.tokens  # text tokens in front of the video's
        lent = self.lend()
        moved = None if freqs is None else freqs[lead + p.matched]
        borrowed = rotate(lent.k[:, :, lead + p.partners], moved)  # Eq. 12
        still = lent.rotated[:, :, lead + p.background]  # the background keeps its place
        keys = torch.cat((borrowed, rotate(k, freqs), still), dim=2)  # Eq. 13
        values = torch.cat((lent.v[:, :, lead + p.partners], v, lent.v[:, :, lead + p.background]), dim=2)

        own = slice(len(p.matched), len(p.matched) + k.shape[2])
        groups = (
            (torch.arange(lead, device=q.device), own),
            (lead + p.foreground, slice(0, own.stop)),
            (lead + p.rest, slice(own.start, None)),
        )
        bias = self._bias(keys, own)
        q = rotate(q, freqs)
        out = torch.empty_like(q)
        for queries, seen in groups:  # Eq. 14
            if len(queries):
                # a copy of the slice: CUDA's kernel wants a bias that begins at a multiple of 16 bytes
                added = None if bias is None else bias[seen].clone().expand(len(queries), -1)
                out[:, :, queries] = F.scaled_dot_product_attention(
                    q[:, :, queries], keys[:, :, seen], values[:, :, seen], added
                )
        return out

    def _bias(self, keys: Tensor, own: slice) -> Tensor | None:
        """What to add to the logits of every key; None where all count the same."""
        if self.strength == self.bg_strength == 1:
            return None
        weights = keys.new_ones(keys.shape[2])
        weights[: own.start], weights[own.stop :] = self.strength, self.bg_strength
        return weights.log()
