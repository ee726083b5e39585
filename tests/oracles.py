"""BachVid as its equations stand in the paper: dense, slow and literal, for the tests to compare with.

Every video is a single row. q, k and v are (H, L, D) of one layer, text first where text shares the sequence;
masks are (N,) bool. Everything is computed in the dtype it is given in: the tests give float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.recipe import Recipe
from bachvid.models.attention import Site, rotate

Encode = Callable[[Tensor, Sequence[int]], Tensor]  # keys (H, n, D) at these n places of the sequence


def as_they_are(x: Tensor, places: Sequence[int]) -> Tensor:
    """Positions that are not rotary: nothing is done to keys."""
    return x


def softmax(scores: Tensor) -> Tensor:
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


def weights(q: Tensor, k: Tensor) -> Tensor:
    """Eq. 1: W (H, Lq, Lk) of keys and queries that carry their positions already."""
    return softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)


def span_means(
    q: Tensor, k: Tensor, spans: Sequence[Tensor], tokens: int, keys: int | None = None
) -> list[Tensor]:
    """The two sides of Eq. 3 at one layer, (N,) each: mean attention to the words of each span.

    `keys` is how many of them the softmax runs over, the text's first; None: all.
    """
    k = k[:, :keys]
    to_text = weights(q, k).mean(0)[-tokens:]  # W_v2t, heads averaged; text keys come first
    segments = [to_text[:, [int(i) for i in span]] for span in spans]  # Eq. 2
    return [segment.sum(1) / segment.shape[1] for segment in segments]


def mask(layers: Sequence[tuple[Tensor, Tensor]], spans: Sequence[Tensor], tokens: int) -> Tensor:
    """Eq. 4, for q and k of every mask layer."""
    background, character = (torch.zeros(tokens, dtype=layers[0][0].dtype) for _ in range(2))
    for q, k in layers:
        bg, fg = span_means(q, k, spans, tokens)
        background, character = background + bg, character + fg
    return background <= character


def mask_by_otsu(layers: Sequence[tuple[Tensor, Tensor]], spans: Sequence[Tensor], tokens: int) -> Tensor:
    """The sums of Eq. 4, each over its mean, and the cut through their differences that tells most.

    A cut tells as much as the means of its two sides differ, squared, by the sides' shares (Otsu 1979).
    """
    both = [span_means(q, k, spans, tokens) for q, k in layers]
    background, character = (torch.stack(sums).sum(0) for sums in zip(*both, strict=True))
    lead = character / character.mean() - background / background.mean()
    told = [(0.0, torch.zeros(tokens, dtype=torch.bool))]
    for cut in lead.sort().values:
        upper = lead > cut
        if upper.any():
            share, apart = upper.double().mean(), lead[upper].mean() - lead[~upper].mean()
            told.append((float(share * (1 - share) * apart**2), upper))
    return max(told, key=lambda cut: cut[0])[1]


def similarities(frame: Sequence[Tensor], identity: Sequence[Tensor], normalize: bool) -> Tensor:
    """Eq. 7: S (N, N), for the attention outputs (N, C) of each layer; with `normalize` cosines (Eq. 5)."""
    total = torch.zeros(len(frame[0]), len(identity[0]), dtype=frame[0].dtype)
    for f, i in zip(frame, identity, strict=True):
        if normalize:
            f, i = (x / (x**2).sum(-1, keepdim=True).sqrt() for x in (f, i))
        total = total + f @ i.T
    return total


def best(similarity: Tensor) -> Tensor:
    """Eq. 8: the column of each row's largest entry."""
    return similarity.argmax(1)


def best_in_frame(similarity: Tensor, per_frame: int) -> Tensor:
    """Eq. 6: the same among the tokens of the same latent frame, counted through the whole video."""
    frame = torch.arange(len(similarity)) // per_frame
    return best(similarity.masked_fill(frame[:, None] != frame[None, :], -torch.inf))


class Sets(NamedTuple):
    """The index sets of Eq. 10-11, as plain lists, and the frame video's mask they come from."""

    mask: list[bool]
    frame_fg: list[int]
    identity_fg: list[int]
    bg: list[int]


def index_sets(
    frame: Sequence[bool],
    identity: Sequence[bool],
    partner: Sequence[int],
    mode: str = "both",
    near: Callable[[int, int], bool] = lambda j, other: j == other,
) -> Sets:
    """`near` tells which tokens are too close to a foreground token to be background: at first itself."""
    fg = [j for j, shows in enumerate(frame) if shows] if mode in ("both", "fg") else []
    shown = [j for j in range(len(frame)) if frame[j] or identity[j]]
    bg = [j for j in range(len(frame)) if not any(near(j, other) for other in shown)]
    bg = bg if mode in ("both", "bg") else []
    return Sets([bool(m) for m in frame], fg, [int(partner[j]) for j in fg], bg)


def only(sets: Sets, fg: bool, bg: bool) -> Sets:
    """What is left of them where the foreground or the background is not borrowed."""
    return Sets(sets.mask, sets.frame_fg * fg, sets.identity_fg * fg, sets.bg * bg)


def injected(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lent: tuple[Tensor, Tensor],
    sets: Sets,
    encode: Encode = as_they_are,
    strength: float = 1.0,
    bg_strength: float = 1.0,
) -> Tensor:
    """Eq. 12-14: one softmax over own and injected keys under a mask; k and `lent` without positions yet.

    With a strength the ones of injected keys in M* are that number, with another one for the background's.
    """
    tokens, own = len(sets.mask), k.shape[1]
    lead = own - tokens
    k_id, v_id = lent
    fg, fg_id, bg = ([lead + j for j in places] for places in (sets.frame_fg, sets.identity_fg, sets.bg))
    keys = [encode(k, range(own)), encode(k_id[:, fg_id], fg), encode(k_id[:, bg], bg)]  # Eq. 12
    values = [v, v_id[:, fg_id], v_id[:, bg]]
    k_star, v_star = torch.cat(keys, dim=1), torch.cat(values, dim=1)  # Eq. 13

    seen = torch.zeros(own, own + len(fg) + len(bg), dtype=q.dtype)  # M*
    for row in range(own):
        shows = row >= lead and sets.mask[row - lead]
        place = row >= lead and not shows
        seen[row, :own] = 1
        seen[row, own : own + len(fg)] = strength * shows
        seen[row, own + len(fg) :] = bg_strength * place
    scores = encode(q, range(own)) @ k_star.transpose(-1, -2) / q.shape[-1] ** 0.5
    return softmax(scores + seen.log()) @ v_star  # Eq. 14


def merged(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the union of disjoint key sets, from those of each."""
    out, total = parts[0]
    for o, s in parts[1:]:
        both = torch.logaddexp(total, s)
        shares = [torch.where(both.isinf(), 0, torch.exp(x - both))[..., None] for x in (total, s)]
        out, total = shares[0] * out + shares[1] * o, both
    return out, total


def rotary(positions: Tensor, widths: Sequence[int], lead: int) -> Encode:
    """RoPE in complex numbers: two neighbouring channels are one, turned by position * 10000^(-2i / width).

    `positions` (N, axes) of the video's tokens; `widths` are the channels of each axis. The first `lead`
    places of the sequence, the text, are not turned.
    """
    angles = []
    for axis, width in enumerate(widths):
        powers = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(positions[:, axis, None].double() * powers)
    turns = torch.polar(torch.ones(()).double(), torch.cat(angles, dim=1))  # N D/2
    turns = torch.cat((torch.ones(lead, turns.shape[1], dtype=turns.dtype), turns))

    def encode(x: Tensor, places: Sequence[int]) -> Tensor:
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns[list(places)]).flatten(-2).to(x.dtype)

    return encode


def turned(freqs: Tensor | None) -> Encode:
    """The model's own rotation: what is compared with it must round as it rounds."""
    return lambda x, places: rotate(x[None], None if freqs is None else freqs[list(places)])[0]


class Watch:
    """Stands at a joint site and attends densely; keeps what passed, as the equations need it."""

    def __init__(self, lent: Watch | None = None, sets: Sets | None = None) -> None:
        self.lent, self.sets = lent, sets

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        encode, places = turned(freqs), range(k.shape[2])
        self.k, self.v = k[0], v[0]
        self.encoded = encode(q[0], places), encode(k[0], places)
        if self.lent is None or self.sets is None:
            self.out = weights(*self.encoded) @ self.v
        else:
            self.out = injected(q[0], self.k, self.v, (self.lent.k, self.lent.v), self.sets, encode)
        return self.out[None]


class Made(NamedTuple):
    latents: list[Tensor]
    masks: list[Tensor]
    partners: list[Tensor]  # of the frame videos


def group(denoiser: Denoiser, recipe: Recipe, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Made:
    """Section 3.5 without a thought of cost: every video from its first step, every forward whole."""
    model, steps = denoiser.model, denoiser.steps
    taus = recipe.tau_mask, recipe.tau_match
    starts = list(zip(prompts, seeds, strict=True))
    masks, features = [], []
    for take in [denoiser.start(*start) for start in starts]:
        for step in range(max(taus) + 1):
            conditional, seen = predict(denoiser, take.latents, take.prompt.text, step)
            tokens = model.grid(take.latents).tokens
            if step == taus[0]:
                layers = [seen[site].encoded for site in recipe.mask_sites]
                masks.append(mask(layers, take.prompt.spans, tokens))
            if step == taus[1]:
                outs = [seen[site].out[:, -tokens:] for site in recipe.match_sites]
                features.append([out.transpose(0, 1).flatten(1) for out in outs])
            unconditional, _ = predict(denoiser, take.latents, denoiser.negative, step)
            walk(denoiser, take, step, conditional, unconditional)

    partners = [best(similarities(frame, features[0], recipe.normalize)) for frame in features[1:]]
    sets: list[Sets | None] = [None]
    for m, partner in zip(masks[1:], partners, strict=True):
        sets.append(index_sets(m.tolist(), masks[0].tolist(), partner.tolist(), recipe.mode))
    takes = [denoiser.start(*start) for start in starts]
    windows = (recipe.inject_steps, recipe.bg_inject_steps or recipe.inject_steps)
    for step in range(steps):
        fg, bg = (not window or window[0] <= step <= window[1] for window in windows)
        predictions: list[list[Tensor]] = [[] for _ in takes]
        for text in (None, denoiser.negative):
            lent: dict[Site, Watch] = {}
            for n, take in enumerate(takes):
                prompt = take.prompt.text if text is None else text
                shared = (fg or bg) and (text is None or recipe.branches == "both")
                borrowed = {site: lent[site] for site in recipe.kv_sites} if n and shared else {}
                here = sets[n] and only(sets[n], fg, bg)
                prediction, seen = predict(denoiser, take.latents, prompt, step, borrowed, here)
                predictions[n].append(prediction)
                lent = lent or seen
        for take, branches in zip(takes, predictions, strict=True):
            walk(denoiser, take, step, *branches)
    return Made([take.latents for take in takes], masks, partners)


def predict(
    denoiser: Denoiser,
    latents: Tensor,
    text: Tensor,
    step: int,
    borrowed: dict[Site, Watch] | None = None,
    sets: Sets | None = None,
) -> tuple[Tensor, dict[Site, Watch]]:
    watches = {site: Watch((borrowed or {}).get(site), sets) for site in denoiser.model.sites}
    t = torch.tensor([denoiser.sampler.schedule.timesteps[step]])
    return denoiser.model(latents, t, text, watches).float(), watches  # type: ignore[operator]


def walk(denoiser: Denoiser, take: Take, step: int, conditional: Tensor, unconditional: Tensor) -> None:
    guided = unconditional + denoiser.scale * (conditional - unconditional)
    if denoiser.scale <= 1:
        guided = conditional
    sampler = denoiser.sampler
    take.latents, take.past = sampler.step(
        take.latents, guided, sampler.schedule, step, take.past, take.generator
    )
