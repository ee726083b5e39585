"""Masks, matches and injection against the paper's equations taken literally: pytest tests/test_method.py"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bachvid.method.attends import Inject, Lent, TextMass
from bachvid.method.mask import Keys, Spans, foreground, grow, smooth, upper_class
from bachvid.method.match import Matches, feature_of, match, places
from bachvid.method.recipe import MODES, PRESETS, Mode, Recipe, load_preset, own_recipe
from bachvid.method.scout import believable
from bachvid.method.spans import Parts, find_spans
from bachvid.models.attention import rotate
from bachvid.models.grid import Grid
from bachvid.models.rope import rotary_table

HEADS, WIDTH, AXES = 3, 16, (4, 6, 6)
RECIPE = Recipe(4, "joint", (1, 2), 1, "joint", (1, 2, 3), 1, (1,))
GRIDS = [Grid(2, 3, 5), Grid(3, 7, 2), Grid(1, 1, 9), Grid(1, 1, 1)]
FP64, FP32, BF16 = torch.float64, torch.float32, torch.bfloat16
DTYPES = [FP64, FP32, BF16]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = FP32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FP64).to(dtype)


def table(grid: Grid, lead: int) -> Tensor:
    return rotary_table([torch.arange(n).float() for n in grid], AXES, lead)


def turned(freqs: Tensor | None, dtype: torch.dtype) -> oracles.Encode:
    """The model's own rotation for the oracle, rounded as the model rounds; test_seam.py proves it right."""

    def encode(x: Tensor, where: Any) -> Tensor:
        return rotate(x[None].to(dtype), None if freqs is None else freqs[list(where)])[0].to(x.dtype)

    return encode


# Masks: Eq. 2-4


SPANS = {
    "words": Spans(torch.tensor([0, 1, 2]), torch.tensor([4, 5])),
    "one word each": Spans(torch.tensor([3]), torch.tensor([0])),
    "scattered words": Spans(torch.tensor([6, 1]), torch.tensor([0, 2, 5])),  # nouns only, the other template
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["joint", "joint, positions added", "cross"])
@pytest.mark.parametrize("over", get_args(Keys))
def test_mask_is_that_of_dense_softmaxes(
    over: Keys, kind: str, dtype: torch.dtype, grid: Grid, spans: Spans
) -> None:
    """Joint: text and video are queries and keys. Cross: queries are all video, keys are all text."""
    text = 7
    queries, keys = (grid.tokens, text) if kind == "cross" else [text + grid.tokens] * 2
    freqs = table(grid, text) if kind == "joint" else None
    encode = turned(freqs, dtype)
    summed: Tensor = torch.zeros(())
    layers = []
    for layer in range(2):
        q = 2 * random(1, HEADS, queries, WIDTH, seed=layer, dtype=dtype)
        k, v = (random(1, HEADS, keys, WIDTH, seed=10 + layer + n, dtype=dtype) for n in range(2))
        mass = TextMass(spans, grid.tokens, over=over)
        mass(q, k, v, freqs)
        layers.append(tuple(encode(x[0].double(), range(x.shape[2])) for x in (q, k)))
        counted = text if over == "text" else None
        expected = torch.stack(oracles.span_means(*layers[-1], spans, grid.tokens, counted))
        assert mass.scores.shape == (2, grid.tokens)
        assert ((mass.scores - expected) / expected).abs().max() < (1e-4 if dtype is BF16 else 1e-5)
        summed = summed + mass.scores
    if over == "all":
        assert torch.equal(foreground(summed), oracles.mask(layers, spans, grid.tokens))
        assert torch.equal(foreground(summed, "otsu"), oracles.mask_by_otsu(layers, spans, grid.tokens))


def test_a_tie_is_foreground() -> None:
    """Eq. 3 compares with "at most"."""
    scores = torch.tensor([[0.25, 0.5, 0.125], [0.25, 0.25, 0.5]])
    assert foreground(scores).tolist() == [True, False, True]


def test_by_otsu_a_part_that_draws_more_attention_everywhere_has_no_advantage() -> None:
    shown = random(4, 30) > 0.5  # three videos, or layers, or steps at once
    scores = torch.stack([2 - 1.5 * shown, 1 + 2.0 * shown]) + 0.1 * random(2, 4, 30)
    assert torch.equal(foreground(scores, "otsu"), shown)
    assert torch.equal(foreground(scores * torch.tensor([9.0, 1.0]).view(2, 1, 1), "otsu"), shown)
    assert not torch.equal(foreground(scores * torch.tensor([9.0, 1.0]).view(2, 1, 1)), shown)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_values_that_are_all_alike_have_no_upper_class(n: int) -> None:
    assert not upper_class(torch.full((2, n), 0.3)).any()


@pytest.mark.parametrize("grid", [Grid(2, 6, 9), Grid(3, 1, 7), Grid(1, 4, 4)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.7, 0.9, 1.0])
def test_smooth_erodes_3x3_then_dilates_5x5_in_each_frame(grid: Grid, share: float) -> None:
    mask = random(grid.tokens).argsort() < share * grid.tokens
    frames = mask.view(*grid)

    def around(of: Tensor, t: int, y: int, x: int, reach: int) -> Tensor:
        return of[t, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]

    eroded = torch.tensor([bool(around(frames, *map(int, place), 1).all()) for place in grid.places()])
    grown = [bool(around(eroded.view(*grid), *map(int, place), 2).any()) for place in grid.places()]
    assert smooth(mask, grid).tolist() == grown


def test_a_mask_grows_in_its_frame_only() -> None:
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[0, 2, 3] = True
    grown = grow(mask.flatten(), Grid(2, 3, 4), 1).view(2, 3, 4)
    assert grown.nonzero().tolist() == [[0, 1, 2], [0, 1, 3], [0, 2, 2], [0, 2, 3]]
    assert torch.equal(grow(mask.flatten(), Grid(2, 3, 4), 0), mask.flatten())


@pytest.mark.parametrize(
    ("foregrounds", "believed"), [(0, False), (4, False), (5, True), (950, True), (951, False), (1000, False)]
)
def test_masks_of_nearly_nothing_and_nearly_everything_are_not_believed(
    foregrounds: int, believed: bool
) -> None:
    assert believable(torch.arange(1000) < foregrounds, RECIPE) == believed


# Matches: Eq. 5-8


def outputs(grid: Grid, lead: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Attention outputs of three layers, of different sizes as layers have them."""
    return [
        (n + 1) * random(1, HEADS, lead + grid.tokens, WIDTH, seed=seed + n, dtype=dtype) for n in range(3)
    ]


def features_of(outs: list[Tensor], tokens: int, normalize: bool) -> list[Tensor]:
    """What `match` takes, of all layers."""
    return [feature_of(out, tokens, normalize) for out in outs]


def dense_features(outs: list[Tensor], tokens: int) -> list[Tensor]:
    """O (N, C) of each layer: the heads of a token in a row."""
    return [torch.stack([out[0, :, n - tokens].flatten() for n in range(tokens)]).double() for out in outs]


@pytest.mark.parametrize("window", ["all", "frame"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(("lead", "dtype"), [(7, FP64), (7, FP32), (0, FP32), (7, BF16)])
def test_matches_are_those_of_the_dense_similarity(
    lead: int, dtype: torch.dtype, grid: Grid, normalize: bool, window: Any
) -> None:
    recipe = replace(RECIPE, normalize=normalize, window=window)
    videos = [outputs(grid, lead, seed, dtype) for seed in (0, 50)]
    features = [features_of(outs, grid.tokens, normalize) for outs in videos]
    assert [x.shape for x in features[0]] == [(grid.tokens, HEADS * WIDTH)] * 3
    got = match(*features, grid, recipe, rows=4)

    layers = [dense_features(outs, grid.tokens) for outs in videos]
    dense = oracles.similarities(*layers, normalize) / 3
    per_frame = grid.height * grid.width
    expected = oracles.best_in_frame(dense, per_frame) if window == "frame" else oracles.best(dense)
    lengths = [[x.norm(dim=1).max().item() for x in of] for of in layers]
    products = [f * i for f, i in zip(*lengths, strict=True)]
    size = 1.0 if normalize else sum(products) / 3  # what rounding is measured by
    value, chosen = (dense.gather(1, best[:, None])[:, 0] for best in (expected, got.partner))
    if dtype is BF16:  # rounded features may prefer a rival that is as good
        assert (value - chosen).max() < 4e-3 * size
        assert (got.partner == expected).float().mean() >= 0.9
    else:
        assert torch.equal(got.partner, expected)
    assert (got.similarity - chosen).abs().max() < (4e-3 if dtype is BF16 else 1e-6) * size


def test_one_layer_in_frame_windows_is_the_cosine_of_eq_5_and_6() -> None:
    grid = Grid(3, 2, 4)
    frame, identity = (outputs(grid, 0, seed, FP32)[:1] for seed in (0, 50))
    recipe = replace(RECIPE, match_layers=(1,), window="frame", normalize=True)
    got = match(*(features_of(outs, grid.tokens, True) for outs in (frame, identity)), grid, recipe)
    for t in range(grid.frames):
        of_frame = slice(8 * t, 8 * t + 8)
        f, i = (dense_features(outs, grid.tokens)[0][of_frame] for outs in (frame, identity))
        cosine = torch.cosine_similarity(f[:, None], i[None], dim=-1)
        assert torch.equal(got.partner[of_frame], 8 * t + cosine.argmax(1))
        assert torch.allclose(got.similarity[of_frame].double(), cosine.amax(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalized_features_match_themselves(dtype: torch.dtype) -> None:
    grid = Grid(2, 3, 5)
    outs = outputs(grid, 7, 0, dtype)
    same = match(*[features_of(outs, grid.tokens, True)] * 2, grid, RECIPE)
    assert torch.equal(same.partner, torch.arange(grid.tokens))
    assert torch.allclose(
        same.similarity.float(), torch.ones(()), rtol=0, atol=1e-2 if dtype is BF16 else 1e-6
    )


@pytest.mark.parametrize("rows", [1, 7, 30, 1000])
def test_blocks_of_any_size_give_the_same_matches(rows: int) -> None:
    grid = Grid(2, 3, 5)
    features = [features_of(outputs(grid, 0, seed, FP32), grid.tokens, True) for seed in (0, 50)]
    whole = match(*features, grid, RECIPE)
    assert torch.equal(match(*features, grid, RECIPE, rows=rows).partner, whole.partner)


# Places: Eq. 10-11


@st.composite
def masks_and_matches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Matches]:
    n = draw(st.integers(1, 12))
    frame, identity = (torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in range(2))
    partner = draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    similarity = draw(st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n))
    return frame, identity, Matches(torch.tensor(partner), torch.tensor(similarity))


@settings(max_examples=150, deadline=None)
@given(
    masks_and_matches(),
    st.sampled_from(MODES),
    st.none() | st.floats(-1, 1, width=32),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2),
)
def test_places_are_the_sets_of_eq_10_and_11(
    drawn: tuple[Tensor, Tensor, Matches],
    mode: Mode,
    least: float | None,
    strict: bool,
    matched: bool,
    margin: int,
) -> None:
    frame, identity, matches = drawn
    options: dict[str, Any] = {"min_similarity": least, "require_identity_foreground": strict}
    recipe = replace(RECIPE, mode=mode, margin=margin, **options)
    grid = Grid(2, 1, len(frame) // 2) if len(frame) % 2 == 0 else Grid(1, 1, len(frame))
    got = places(frame, identity, matches if matched else None, grid, recipe)

    def near(j: int, other: int) -> bool:
        return j // grid.width == other // grid.width and abs(j - other) <= margin

    masks = frame.tolist(), identity.tolist()
    sets = oracles.index_sets(*masks, matches.partner.tolist(), mode, near)
    kept = [
        (j, i)
        for j, i in zip(sets.frame_fg, sets.identity_fg, strict=True)
        if matched and (least is None or matches.similarity[j] >= least) and (not strict or bool(identity[i]))
    ]
    assert list(zip(got.matched.tolist(), got.partners.tolist(), strict=True)) == kept
    assert got.background.tolist() == sets.bg

    assert got.tokens == len(frame)
    assert sorted(got.foreground.tolist() + got.rest.tolist()) == list(range(len(frame)))
    assert frame[got.foreground].all()
    assert not frame[got.rest].any()
    assert not set(got.matched.tolist()) & set(got.background.tolist())
    assert {x.dtype for x in (got.foreground, got.rest, got.matched, got.partners, got.background)} == {
        torch.int64
    }


# Injection: Eq. 12-14


class Case:
    """A frame video's q, k, v, what is lent to it, and the same for the oracle in float64."""

    def __init__(self, grid: Grid, lead: int, dtype: torch.dtype, rotary: bool, heads: int = HEADS) -> None:
        shape = (1, heads, lead + grid.tokens, WIDTH)
        self.q, self.k, self.v, self.lent_k, self.lent_v = (
            (1 + (n == 0)) * random(*shape, seed=n, dtype=dtype) for n in range(5)
        )
        self.dtype, self.freqs = dtype, table(grid, lead) if rotary else None

    def got(
        self,
        frame: Tensor,
        identity: Tensor,
        partner: Tensor,
        mode: Mode,
        strength: float = 1.0,
        bg_strength: float = 1.0,
    ) -> Tensor:
        matches = Matches(partner, torch.ones(len(partner)))
        where = places(frame, identity, matches, Grid(1, 1, len(frame)), replace(RECIPE, mode=mode))
        lent = Lent(self.lent_k, rotate(self.lent_k, self.freqs), self.lent_v)
        return Inject(lambda: lent, where, strength, bg_strength)(self.q, self.k, self.v, self.freqs)[0]

    def dense(
        self,
        frame: Tensor,
        identity: Tensor,
        partner: Tensor,
        mode: Mode,
        encode: oracles.Encode | None = None,
        strength: float = 1.0,
        bg_strength: float = 1.0,
    ) -> Tensor:
        q, k, v, lent_k, lent_v = (x[0].double() for x in (self.q, self.k, self.v, self.lent_k, self.lent_v))
        sets = oracles.index_sets(frame.tolist(), identity.tolist(), partner.tolist(), mode)
        encode = encode or turned(self.freqs, self.dtype)
        return oracles.injected(q, k, v, (lent_k, lent_v), sets, encode, strength, bg_strength)


def off_by(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


LIMITS = {FP64: 1e-12, FP32: 1e-5, BF16: 3e-3}
MASKS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "some": lambda n: (random(n, seed=5) > 0.4, random(n, seed=6) > 0.4),
    "one token": lambda n: (torch.arange(n) == n // 2, torch.arange(n) == 0),
    "no foreground": lambda n: (torch.zeros(n).bool(), torch.zeros(n).bool()),
    "all foreground": lambda n: (torch.ones(n).bool(), torch.zeros(n).bool()),
    "identity all foreground": lambda n: (random(n, seed=5) > 0.4, torch.ones(n).bool()),
    "no foreground, no background": lambda n: (torch.zeros(n).bool(), torch.ones(n).bool()),
}


@pytest.mark.parametrize("mode", ["both", "fg", "bg"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("rotary", [True, False], ids=["rotary", "added"])
@pytest.mark.parametrize("lead", [7, 0], ids=["joint", "self"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_injection_by_query_groups_is_the_dense_one(
    dtype: torch.dtype, lead: int, rotary: bool, masks: str, mode: Mode
) -> None:
    grid = Grid(2, 3, 7)
    frame, identity = MASKS[masks](grid.tokens)
    partner = torch.randint(grid.tokens, (grid.tokens,), generator=torch.Generator().manual_seed(8))
    case = Case(grid, lead, dtype, rotary)
    got, expected = (make(frame, identity, partner, mode) for make in (case.got, case.dense))
    assert got.dtype == dtype
    assert off_by(got, expected) < LIMITS[dtype]
    if masks == "some":
        plain = case.dense(frame, identity, partner, "off")
        assert off_by(expected[:, lead:], plain[:, lead:]) > 0.2, "the injection must be felt"
        assert torch.allclose(expected[:, :lead], plain[:, :lead], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("strength", "bg_strength"), [(0.0, None), (0.3, None), (2.5, None), (1.0, 0.25), (2.5, 0.0), (0.0, 1.0)]
)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("lead", [7, 0], ids=["joint", "self"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strength_multiplies_what_borrowed_keys_weigh(
    dtype: torch.dtype, lead: int, masks: str, strength: float, bg_strength: float | None
) -> None:
    grid = Grid(2, 3, 7)
    frame, identity = MASKS[masks](grid.tokens)
    partner = torch.randint(grid.tokens, (grid.tokens,), generator=torch.Generator().manual_seed(8))
    case = Case(grid, lead, dtype, rotary=True)
    both = replace(RECIPE, strength=strength, bg_strength=bg_strength).strengths
    assert both == (strength, strength if bg_strength is None else bg_strength)
    got = case.got(frame, identity, partner, "both", *both)
    expected = case.dense(frame, identity, partner, "both", None, *both)
    assert off_by(got, expected) < LIMITS[dtype]
    alone: dict[tuple[float, float], Mode] = {(0.0, 0.0): "off", (0.0, 1.0): "bg"}
    if mode := alone.get(both):
        assert off_by(got, case.dense(frame, identity, partner, mode)) < LIMITS[dtype]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("lead", [7, 0])
def test_keys_move_to_the_frame_videos_positions(grid: Grid, lead: int) -> None:
    """Eq. 12 with a rotation of the test's own, in complex numbers."""
    frame, identity = MASKS["some"](grid.tokens)
    partner = torch.randint(grid.tokens, (grid.tokens,), generator=torch.Generator().manual_seed(8))
    case = Case(grid, lead, FP32, rotary=True)
    encode = oracles.rotary(grid.places(), AXES, lead)
    expected = case.dense(frame, identity, partner, "both", encode)
    assert (case.got(frame, identity, partner, "both") - expected).abs().max() < 1e-5


@settings(max_examples=80, deadline=None)
@given(masks_and_matches(), st.integers(0, 4), st.integers(1, 3), st.booleans(), st.sampled_from(MODES))
def test_any_injection_is_the_dense_one(
    drawn: tuple[Tensor, Tensor, Matches], lead: int, heads: int, rotary: bool, mode: Mode
) -> None:
    frame, identity, matches = drawn
    case = Case(Grid(1, 1, len(frame)), lead, FP64, rotary, heads)
    got, expected = (make(frame, identity, matches.partner, mode) for make in (case.got, case.dense))
    assert off_by(got, expected) < 1e-12


def test_foreground_that_borrows_nothing_still_sees_what_others_borrow() -> None:
    """Eq. 14 lets every foreground query see all injected foreground keys, also one without a match."""
    grid = Grid(1, 2, 3)
    frame, identity = torch.tensor([1, 1, 1, 0, 0, 0]).bool(), torch.tensor([0, 0, 0, 0, 1, 1]).bool()
    matches = Matches(torch.tensor([4, 2, 5, 0, 0, 0]), torch.tensor([0.9, 0.9, 0.1, 0, 0, 0]))
    recipe = replace(RECIPE, min_similarity=0.5, require_identity_foreground=True)
    case = Case(grid, 2, FP64, rotary=True)
    lent = Lent(case.lent_k, rotate(case.lent_k, case.freqs), case.lent_v)
    inject = Inject(lambda: lent, places(frame, identity, matches, grid, recipe))
    got = inject(case.q, case.k, case.v, case.freqs)[0]
    sets = oracles.Sets(frame.tolist(), [0], [4], [3])
    q, k, v, lent_k, lent_v = (x[0] for x in (case.q, case.k, case.v, case.lent_k, case.lent_v))
    expected = oracles.injected(q, k, v, (lent_k, lent_v), sets, turned(case.freqs, FP64))
    assert off_by(got, expected) < 1e-12


# Prompts: spans of their parts


texts = st.lists(st.text("abcé", min_size=1, max_size=4), min_size=1, max_size=4).map(" ".join)


@st.composite
def tokenized(draw: st.DrawFn) -> tuple[Parts, bool, list[tuple[int, int]]]:
    """Parts, their template, and the prompt cut into tokens anywhere: across joints, too, and lone spaces."""
    parts, character_first = Parts(draw(texts), draw(texts), draw(texts)), draw(st.booleans())
    prompt = parts.prompt(character_first)
    cuts = sorted(draw(st.sets(st.integers(1, len(prompt)), max_size=len(prompt))) | {0, len(prompt)})
    offsets = []
    for start, end in pairwise(cuts):
        start += len(prompt[start:end]) - len(prompt[start:end].lstrip())
        offsets.append((start, start + len(prompt[start:end].rstrip())))
    return parts, character_first, offsets


@settings(max_examples=200, deadline=None)
@given(tokenized())
def test_a_token_belongs_to_the_part_that_holds_its_first_letter(
    drawn: tuple[Parts, bool, list[tuple[int, int]]],
) -> None:
    parts, character_first, offsets = drawn
    first, second = ("character", "background") if character_first else ("background", "character")
    owners: list[str | None] = []
    for name in (first, second, "action"):
        owners += [name] * len(getattr(parts, name)) + [None]
    owned: dict[str, list[int]] = {"background": [], "character": [], "action": []}
    for n, (start, end) in enumerate(offsets):
        if start < end:
            owner = owners[start]
            assert owner is not None
            owned[owner].append(n)

    ranges = parts.ranges(character_first)
    if empty := [name for name in (first, second, "action") if not owned[name]]:
        with pytest.raises(ValueError, match=f"^The {empty[0]} has no word"):
            find_spans(offsets, ranges, limit=len(offsets))
        return
    spans = find_spans(offsets, ranges, limit=len(offsets))
    assert spans.background.tolist() == owned["background"]
    assert spans.character.tolist() == owned["character"]
    assert spans.background.dtype == spans.character.dtype == torch.int64


@settings(max_examples=100, deadline=None)
@given(tokenized(), st.integers(1, 5))
def test_a_prompt_over_the_limit_is_refused_with_its_part_and_number(
    drawn: tuple[Parts, bool, list[tuple[int, int]]], over: int
) -> None:
    parts, character_first, offsets = drawn
    offsets = [offset for offset in offsets if offset[0] < offset[1]]
    ranges = parts.ranges(character_first)
    limit = len(offsets) - over
    assume(limit > 0)
    assume(all(any(a <= start < b for start, _ in offsets) for a, b in ranges.values()))
    reached = next(name for name, (a, b) in ranges.items() if a <= offsets[limit][0] < b)
    message = rf"has {len(offsets)} tokens, {over} over .* limit of {limit}\..* the {reached}: shorten"
    with pytest.raises(ValueError, match=message):
        find_spans(offsets, ranges, limit)


@pytest.mark.parametrize("character_first", [False, True])
def test_ranges_cut_the_prompt_into_its_parts(character_first: bool) -> None:
    parts = Parts("an old kitchen.", "a red fox", "sleeps")
    prompt = parts.prompt(character_first)
    expected = "a red fox an old kitchen. sleeps" if character_first else "an old kitchen. a red fox sleeps"
    assert prompt == expected
    ranges = parts.ranges(character_first)
    assert {name: prompt[a:b] for name, (a, b) in ranges.items()} == vars(parts)


# Recipes


def test_a_tau_follows_its_noise_level_into_another_schedule() -> None:
    recipe = replace(RECIPE, steps=4, tau_mask=1, tau_match=2, mask_level=749.0, match_level=None)
    early = recipe.at([999, 990, 960, 900, 760, 400, 100, 10])  # the same noise comes late in this one
    assert (early.tau_mask, early.tau_match) == (4, 4)
    assert recipe.at([999, 749, 499, 249]) == recipe


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(1, 60))
def test_a_recipe_for_another_schedule(data: st.DataObject, own: int, steps: int) -> None:
    taus = [data.draw(st.integers(0, own - 1)) for _ in range(4)]
    first, last = window = tuple(sorted(taus[2:]))
    windows = {"inject_steps": window, "bg_inject_steps": window}
    recipe = replace(RECIPE, steps=own, tau_mask=taus[0], tau_match=taus[1], **windows)
    scaled = recipe.at(range(steps, 0, -1))
    assert scaled.steps == steps
    assert scaled.inject_steps is not None
    assert scaled.bg_inject_steps == scaled.inject_steps
    begin, end = scaled.inject_steps
    pairs = zip((*taus[:2], first), (scaled.tau_mask, scaled.tau_match, begin), strict=True)
    for before, after in pairs:
        assert 0 <= after < steps
        assert abs(after - before * steps / own) <= 0.5 or after == steps - 1
    assert begin <= end < steps
    assert abs(end + 1 - (last + 1) * steps / own) <= 0.5 or end == begin
    assert (end == steps - 1) or last < own - 1, "what injects to the end still does"
    assert recipe.at(range(own)) == recipe
    assert replace(scaled, steps=own, tau_mask=taus[0], tau_match=taus[1], **windows) == recipe


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(1, 42), min_size=1), st.integers(1, 60))
def test_a_recipe_for_another_depth(layers: set[int], depth: int) -> None:
    chosen = tuple(sorted(layers))
    recipe = replace(RECIPE, mask_layers=chosen, match_layers=chosen, kv_layers=chosen)
    scaled = recipe.scaled_to(depth, 42)
    assert scaled.mask_layers == scaled.match_layers == scaled.kv_layers
    assert list(scaled.kv_layers) == sorted(set(scaled.kv_layers))
    assert scaled.kv_layers[0] >= 1
    assert scaled.kv_layers[-1] <= depth
    for n in chosen:
        assert min(abs(m - n * depth / 42) for m in scaled.kv_layers) <= 1
    assert recipe.scaled_to(42, 42) == recipe


@pytest.mark.parametrize("recipe", [RECIPE, *PRESETS.values(), replace(RECIPE, inject_steps=(1, 2))])
def test_a_recipe_survives_json(recipe: Recipe, tmp_path: Any) -> None:
    path = tmp_path / "preset.json"
    path.write_text(json.dumps(recipe.to_dict()))
    assert load_preset(path) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau_masc": 5}, "unknown name 'tau_masc' in a recipe; known are: .*tau_mask"),
        ({"steps": None}, "incomplete recipe: .*'steps'"),
        ({"mode": "x"}, "mode is 'x' instead of 'both' or 'fg' or 'bg' or 'off'"),
        ({"normalize": "no"}, "normalize is 'no' instead of true or false"),
        ({"smooth": 1}, "smooth is 1 instead of true or false"),
        ({"tau_mask": -1}, "tau_mask is -1 instead of a whole number"),
        ({"tau_mask": True}, "tau_mask is True instead of a whole number"),
        ({"tau_match": 50}, "tau_mask and tau_match must be steps before"),
        ({"guidance": float("nan")}, "guidance is nan instead of a number"),
        ({"min_similarity": "x"}, "min_similarity is 'x' instead of a number or null"),
        ({"strength": -1}, "strength and bg_strength must not be less than 0"),
        ({"inject_steps": [15, 0]}, r"inject_steps is \[15, 0\] instead of a first and a last step or null"),
        ({"inject_steps": [1]}, "inject_steps is"),
        ({"bg_inject_steps": [2, 1]}, "bg_inject_steps is"),
        ({"kv_layers": []}, r"kv_layers is \[\] instead of a list of layers, which count from 1"),
        ({"kv_layers": [0, 1]}, "kv_layers is"),
        ({"kv_layers": [2, 2]}, "kv_layers is"),
        ({"match_layers": 3}, "match_layers is 3 instead of a list"),
        ({"mask_layers": [1.0]}, "mask_layers is"),
    ],
)
def test_a_recipe_with_a_wrong_or_missing_name_is_refused(change: dict, message: str, tmp_path: Any) -> None:
    values = {name: value for name, value in {**RECIPE.to_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict(values)
    path = tmp_path / "preset.json"
    for text in (json.dumps(values), "[1, 2]", "{", '"steps"'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"preset\.json is not a recipe"):
            load_preset(path)


def test_the_papers_numbers() -> None:
    paper = PRESETS["paper-cogvideox-5b"]
    assert (paper.steps, paper.tau_mask, paper.tau_match) == (50, 5, 5)
    assert paper.mask_layers == tuple(range(6, 21))
    assert paper.match_layers == tuple(range(2, 17))
    assert paper.kv_layers == (1, 2, 12, 13, 14, 15, 16, 18, 20, 21, 22, 24, 30, 35, 42)
    assert {site.kind for site in (*paper.mask_sites, *paper.match_sites, *paper.kv_sites)} == {"joint"}
    options = (paper.mode, paper.branches, paper.inject_steps, paper.normalize, paper.window)
    assert options == ("both", "cond", None, False, "all")
    assert (paper.smooth, paper.refresh, paper.min_similarity) == (False, False, None)
    assert not paper.require_identity_foreground
    assert (paper.least_share, paper.most_share) == (0.005, 0.95)


def test_a_checkpoint_nobody_analysed_gets_the_papers_layers_to_scale(tmp_path: Path) -> None:
    wan = own_recipe(tmp_path, "wan", 20)
    assert (wan.mask_kind, wan.token_kind, wan.words) == ("cross", "self", "nouns")
    assert wan.kv_layers == (1, 8, 11, 12, 14, 16, 17, 18, 20), "halves, each once"
    own = replace(PRESETS["paper-cogvideox-5b"], tau_mask=3)
    (tmp_path / "preset.json").write_text(json.dumps(own.to_dict()))
    assert own_recipe(tmp_path, "wan", 20) == own, "its own preset goes first"


@pytest.mark.parametrize(
    ("mode", "window", "place", "expected"),
    [
        ("both", None, None, ["both", "both", "both", "both"]),
        ("fg", (1, 2), None, ["off", "fg", "fg", "off"]),
        ("bg", (3, 3), None, ["off", "off", "off", "bg"]),
        ("off", None, None, ["off", "off", "off", "off"]),
        ("off", (0, 3), (0, 3), ["off", "off", "off", "off"]),
        ("both", (0, 1), (1, 3), ["fg", "both", "bg", "bg"]),
        ("both", None, (2, 2), ["fg", "fg", "both", "fg"]),
        ("both", (0, 0), (2, 3), ["fg", "off", "bg", "bg"]),
        ("fg", (0, 0), (2, 3), ["fg", "off", "off", "off"]),
        ("bg", (0, 0), (2, 3), ["off", "off", "bg", "bg"]),
    ],
)
def test_what_is_borrowed_at_which_step(
    mode: Mode, window: tuple[int, int] | None, place: tuple[int, int] | None, expected: list[Mode]
) -> None:
    recipe = replace(RECIPE, mode=mode, inject_steps=window, bg_inject_steps=place)
    assert [recipe.mode_at(step) for step in range(4)] == expected
    assert [recipe.injects_at(step) for step in range(4)] == [each != "off" for each in expected]
