"""The analyses of a checkpoint: what is observed, how it is scored, what is chosen, and what it costs."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
import stage_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from bachvid.calibrate import select
from bachvid.calibrate.choose import (
    MASK_RULES,
    Evidence,
    choose_masks,
    choose_vital,
    rank_matches,
    settle_matches,
)
from bachvid.calibrate.consensus import Consensus, agreed_partners
from bachvid.calibrate.observe import Observed, fused_partners, observe
from bachvid.calibrate.profile import (
    MatchScores,
    by_movement,
    mask_ious,
    match_scores,
    random_mse,
    same_place_scores,
)
from bachvid.calibrate.select import Layers
from bachvid.calibrate.truth import SeenGroup
from bachvid.calibrate.vital import made_without, without
from bachvid.evaluate.studio import Studio
from bachvid.method.denoiser import Denoiser, Prompt
from bachvid.method.group import vanilla
from bachvid.method.match import match
from bachvid.method.recipe import load_preset
from bachvid.method.scout import look_at
from bachvid.models.checkpoint import open_checkpoint
from bachvid.models.grid import Grid
from bachvid.sampling.sampler import read_sampler
from bachvid.stage.captions import caption
from bachvid.stage.world import sample_group

STEPS = 3


@pytest.fixture(scope="module", params=["tiny-cogvideox", "tiny-wan"])
def studio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A random model of three layers, of either family."""
    folder = stage_models.random_model(
        tmp_path_factory.mktemp("models") / request.param, request.param, layers=3
    )
    checkpoint, recipe = open_checkpoint(folder), load_preset(folder / "preset.json")
    return Studio.open(
        checkpoint, recipe.at(read_sampler(checkpoint.scheduler, STEPS).schedule.timesteps), "cpu"
    )


@pytest.fixture(scope="module")
def prompts(studio: Studio) -> list[Prompt]:
    return studio.prompts([caption(clip) for clip in sample_group(random.Random(0), 2)])


@pytest.fixture(scope="module")
def seen(studio: Studio, prompts: list[Prompt]) -> Observed:
    return observe(studio.denoiser(), studio.recipe, prompts, [1, 2])


# What is observed.


def test_observed_videos_are_the_vanilla_videos(
    studio: Studio, prompts: list[Prompt], seen: Observed
) -> None:
    alone = [
        take.latents
        for progress, take in vanilla(studio.denoiser(), prompts, [1, 2])
        if progress.step == STEPS - 1
    ]
    assert torch.equal(seen.trajectory[:, -1], torch.cat(alone))
    assert torch.equal(
        seen.trajectory[:, 0], torch.cat([studio.denoiser().start(prompts[0], n).latents for n in (1, 2)])
    )


def test_every_map_is_that_of_a_look_at_one_layer(
    studio: Studio, prompts: list[Prompt], seen: Observed
) -> None:
    denoiser, tokens = studio.denoiser(), studio.grid().tokens
    assert seen.scores.shape == (2, STEPS, 3, 2, tokens) and seen.partner.shape == (1, STEPS, 3, tokens)
    for step in range(STEPS):
        for layer in (1, 2, 3):
            recipe = replace(studio.recipe, mask_layers=(layer,), match_layers=(layer,), window="frame")
            looks = [
                look_at(denoiser, recipe, prompt, row[None], step)
                for prompt, row in zip(prompts, seen.trajectory[:, step], strict=True)
            ]
            for row, look in enumerate(looks):
                (mass,) = look.masses.values()
                ours = seen.scores[row, step, layer - 1].float() / tokens
                assert torch.allclose(ours, mass.scores, rtol=2e-3, atol=0)
            expected = match(looks[1].features(), looks[0].features(), studio.grid(), recipe).partner
            assert (seen.partner[0, step, layer - 1] == expected).float().mean() > 0.999  # ties apart


def test_fused_partners_are_those_of_all_layers_together(
    studio: Studio, prompts: list[Prompt], seen: Observed
) -> None:
    recipe = replace(studio.recipe, match_layers=(1, 3), mask_layers=(1,))
    found = fused_partners(studio.denoiser(), recipe, prompts, seen.trajectory)
    features = [
        look_at(studio.denoiser(), recipe, prompt, row[None], 1).features()
        for prompt, row in zip(prompts, seen.trajectory[:, 1], strict=True)
    ]
    assert torch.equal(found[0, 1].long(), match(features[1], features[0], studio.grid(), recipe).partner)
    assert found.shape == (1, STEPS, studio.grid().tokens)


# Leaving a layer out.


def test_a_layer_left_out_is_a_model_built_without_it(studio: Studio, prompts: list[Prompt]) -> None:
    config = replace(studio.model.config, layers=2)
    shorter = type(studio.model)(config).eval()
    state = {
        name.replace("blocks.2.", "blocks.1."): value
        for name, value in studio.model.state_dict().items()
        if not name.startswith("blocks.1.")
    }
    shorter.load_state_dict(state)
    whole = studio.denoiser()
    lesser, built = without(whole, 2), replace(whole, model=shorter, _openings={})

    def made(denoiser: Denoiser) -> torch.Tensor:
        return [take.latents for _, take in vanilla(denoiser, prompts[:1], [1])][-1]

    assert torch.equal(made(lesser), made(built))
    assert torch.equal(made(lesser), made_without(studio, prompts[0], 1, 2))
    assert not torch.equal(made(lesser), made(whole))
    assert {site.layer for site in lesser.model.sites} == {1, 3}


# Scores, in closed form.


def boxes() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (1, 1, 3, 2, N) of layers that are right, half right and all true, and the truth (1, N)."""
    truth = torch.zeros(8, dtype=torch.bool)
    truth[:4] = True
    half = torch.zeros(8)
    half[2:6] = 1
    character = torch.stack([truth.float(), half, torch.ones(8)])
    background = torch.full_like(character, 0.5)
    return torch.stack([background, character], dim=1)[None, None], truth[None]


def test_ious_of_layers_and_of_their_sum() -> None:
    scores, truth = boxes()
    assert mask_ious(scores, truth, "compare")[0, 0].tolist() == pytest.approx([1, 1 / 3, 0.5])
    all_three = 4 / 6  # a sum of 2 against 1.5
    assert mask_ious(scores, truth, "compare", (2,))[0, 0, 1] == pytest.approx(1 / 3)
    assert mask_ious(scores, truth, "compare", (1, 3))[0, 0] == pytest.approx([0.5, all_three, 0.5])
    assert mask_ious(scores, truth, "compare", (1, 2, 3))[0, 0] == pytest.approx([all_three] * 3)
    assert np.isnan(mask_ious(scores, truth & False, "compare")).all()


def test_a_shift_costs_its_squared_length_and_no_movement_what_the_truth_moved() -> None:
    grid = Grid(2, 8, 9)
    own = torch.arange(grid.tokens)
    truth = torch.full((1, grid.tokens, 2), -1)
    truth[0, 20, 0], truth[0, 20, 1] = 20 + 2 * 9 + 3, 20 + 72 + 2 * 9 + 3  # two down, three to the right
    still = same_place_scores(truth, grid)
    assert (still.mse[0], still.median[0], still.pck1[0], still.points[0]) == (13, 13, 0, 1)
    near = match_scores((own + 2 * 9 + 2).clamp(max=grid.tokens - 1)[None, None], truth, grid)
    assert (near.mse[0, 0], near.pck1[0, 0], near.pck2[0, 0]) == (1, 1, 1)
    assert np.isnan(match_scores(own[None], truth * 0 - 1, grid).mse[0])


def test_matches_are_told_apart_by_how_far_the_character_moved() -> None:
    grid = Grid(1, 8, 9)
    truth = torch.full((1, grid.tokens, 1), -1)
    for token, true in ((0, 1), (10, 12), (20, 20 + 45)):  # one to the right, two to the right, five down
        truth[0, token, 0] = true
    guess = torch.arange(grid.tokens)[None].clone()
    guess[0, 20] = 20 + 45 + 2
    found = by_movement(guess, truth, grid)
    assert found["tokens moved"] == ["0 to 2", "2 to 5", "5 and more"]
    assert found["points"] == [1, 1, 1]
    assert found["mse"] == [1, 4, 4]
    assert found["pck1"] == [1, 0, 0]
    assert found["same place"] == [1, 4, 25]
    assert np.isnan(by_movement(guess, truth * 0 - 1, grid)["mse"]).all()


def test_random_partners_cost_what_the_closed_form_says() -> None:
    grid = Grid(1, 16, 24)
    generator = torch.Generator().manual_seed(0)
    guess, true = torch.randint(grid.tokens, (2, 200, grid.tokens), generator=generator)
    found = match_scores(guess, true[..., None], grid).mse.mean()
    assert found == pytest.approx(random_mse(grid), rel=0.02)


# Self-consistency: what stands in for truth where nobody else is asked.


def test_layers_and_later_steps_agree_on_masks_however_loud_single_ones_are() -> None:
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(2, 24, generator=generator) < 0.3
    scores = 1 + torch.stack([-0.5 * shown, 2.0 * shown], 1)[:, None, None].repeat(1, 4, 3, 1, 1)  # V S L 2 N
    scores[:, :2] = scores[:, :2].flip(-1)  # early steps see it elsewhere
    loud = torch.tensor([1.0, 1.0, 50.0]).view(3, 1, 1)
    mute = torch.tensor([0, 0, 1]).bool()
    scores[..., mute, 1, :] = 1.0  # the loudest layer cannot tell
    partner = torch.arange(24).expand(1, 4, 3, 24).int()
    observed = Observed((scores * loud).half(), partner, torch.zeros(()))
    known = Consensus().of(SeenGroup(observed, iter(())), Grid(2, 3, 4))
    assert torch.equal(known.masks, shown)
    still = torch.arange(24).view(24, 1).expand(24, 2)
    own_frame = torch.arange(24)[:, None] // 12 == torch.arange(2)
    expected = torch.where((shown[0] & shown[1])[:, None] & own_frame, still, -1)
    assert torch.equal(known.partners, expected[None])


@pytest.mark.parametrize(("strays", "known"), [(0, True), (3, True), (4, False)])
def test_a_partner_is_known_where_most_votes_are_near_it(strays: int, known: bool) -> None:
    grid, everywhere = Grid(1, 4, 5), torch.ones(20, dtype=torch.bool)
    votes = torch.full((7, 20), 11)  # row 2, column 1
    votes[5] = 12  # next to it
    votes[6] = 6  # and above
    votes[:strays, 0] = torch.tensor([0, 4, 19, 15])[:strays]  # the corners: their median is not moved
    partners = agreed_partners(votes, everywhere, everywhere, grid)
    assert partners[0].item() == (11 if known else -1) and (partners[1:] == 11).all()
    nowhere = ~everywhere
    assert (agreed_partners(votes, nowhere, everywhere, grid) == -1).all()
    assert (agreed_partners(votes, everywhere, nowhere, grid) == -1).all()


# Selection: item 9, on profiles made by hand.


def profile(*layers: float, videos: int = 6, steps: int = 5) -> np.ndarray:
    """Values (V, S, L) that are the same in every video and step."""
    return np.broadcast_to(np.array(layers), (videos, steps, len(layers))).copy()


def test_mask_layers_reach_a_share_of_the_best_and_beat_the_trivial_mask() -> None:
    iou = profile(0.2, 0.71, 1.0, 0.69, 0.8)
    assert select.mask_layers(iou, floor=0.1, ratio=0.7, most=15) == (2, 3, 5)
    assert select.mask_layers(iou, floor=0.1, ratio=0.7, most=2) == (3, 5)
    assert select.mask_layers(iou, floor=0.75, ratio=0.1, most=15) == (3, 5)
    assert select.mask_layers(iou, floor=1.0, ratio=0.7, most=15) == ()


@pytest.mark.parametrize(
    "pair", [0.8, 0.59]
)  # a second layer that gains, and one that only the third pays for
def test_the_fewest_layers_that_come_near_the_best_are_joined(pair: float) -> None:
    together = {(1,): 0.5, (2,): 0.6, (3,): 0.4, (4,): 0.1, (1, 2): 0.58, (2, 3): pair, (2, 4): 0.2}
    together |= {(1, 2, 3): 0.805, (2, 3, 4): 0.7, (1, 2, 3, 4): 0.5}

    def joined(sets: Collection[Layers]) -> dict[Layers, np.ndarray]:
        scores = {s: np.array([together[tuple(sorted({*s, n}))] for n in range(1, 5)]) for s in sets}
        flipped = {s: row[::-1] for s, row in scores.items()}  # of a third video, in which all is upside down
        return {
            s: np.array([[0 * row, row], [np.nan * row, row], [flipped[s], flipped[s]]])
            for s, row in scores.items()
        }

    draws = np.array([[0, 1], [1, 0]])
    assert select.grow(joined, draws, layers=4, most=15) == [(2, 3) if pair == 0.8 else (1, 2, 3)] * 2
    assert select.grow(joined, draws, layers=4, most=1) == [(2,)] * 2
    first, second = select.grow(joined, np.array([[0, 1], [2, 2]]), layers=4, most=1)
    assert (first, second) == ((2,), (3,)), "every draw goes a way of its own"


def test_match_layers_are_the_lowest_and_beat_no_movement() -> None:
    mse = profile(9.0, 2.0, 5.0, 1.0)
    assert select.match_layers(mse, ceiling=8, count=3, window=(0, 4)) == (2, 3, 4)
    assert select.match_layers(mse, ceiling=4, count=3, window=(0, 4)) == (2, 4)
    mse[:, 3:, 0] = 0  # good late, outside of the window
    assert 1 not in select.match_layers(mse, ceiling=8, count=3, window=(0, 2))


def test_the_surest_match_layers_hit_most_often_and_beat_no_movement() -> None:
    hits = profile(0.3, 0.7, 0.5, 0.9)
    assert select.surest_layers(hits, floor=0.2, count=2) == (2, 4)
    assert select.surest_layers(hits, floor=0.4, count=4) == (2, 3, 4)
    hits[:, -1, 0] = 1  # once is not often
    assert select.surest_layers(hits, floor=0.2, count=2) == (2, 4)


@pytest.mark.parametrize(("rule", "layers"), [("calm", (1,)), ("hits", (2,))])
def test_matches_are_chosen_by_the_rule_that_is_asked_for(rule: str, layers: tuple[int, ...]) -> None:
    mse, hits = profile(4.0, 1.5), profile(0.3, 0.8)
    mse[:, -1] = (0.1, 0.9)  # the step at which the second layer, the better one on the whole, is calm
    far, few = np.full(len(mse), 8.0), np.full(len(mse), 0.1)
    still = MatchScores(mse=far, median=far, pck1=few, pck2=few, points=few)
    evidence = Evidence(
        iou=mse,
        matches=MatchScores(mse=mse, median=mse, pck1=hits, pck2=hits, points=hits),
        still=still,
        share=0.2,
        grid=Grid(1, 2, 2),
        timesteps=range(5),
        seed=0,
        joined_ious=lambda _: {},
    )
    chosen, figure = rank_matches(evidence, 1, rule)
    assert chosen.layers == layers
    assert figure["window"] == ([4, 4] if rule == "calm" else [0, 4])


def test_steps_are_the_first_near_the_best() -> None:
    assert select.first_high(np.array([0.2, 0.76, 0.8, 0.7])) == 1
    curve = np.array([9, 2.2, 2.09, 2.0, 2.05])
    assert select.first_low(curve, ceiling=10) == 2
    assert select.first_low(curve, ceiling=21) == 1  # what lies between them is nothing beside 21
    calm = profile(0.0, 9.0, steps=4)
    calm[..., 0] = [4, 1.4, 1, 1.6]
    assert select.calm_window(calm) == (1, 2)


def test_only_a_layer_whose_loss_clearly_costs_more_is_vital() -> None:
    rng = np.random.default_rng(0)
    drops = rng.normal(0, 0.01, (12, 20))
    drops[:, 4] += 1
    drops[0, 9] += 30  # one accident among twelve
    assert select.outliers(drops) == (5,)
    assert select.outliers(rng.normal(0, 0.01, (12, 20))) == ()
    assert select.outliers(-drops) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusted_p_values_never_fall_below_the_plain_ones(values: list[float]) -> None:
    p = np.array(values)
    adjusted = select.holm(p)
    assert (adjusted >= p).all() and (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    assert adjusted.min() == pytest.approx(min(1, p.min() * len(p)))


def test_stability_tells_a_sure_layer_from_a_borderline_one() -> None:
    iou = profile(1.0, 0.7, 0.1, videos=40)
    iou[::2, :, 1] = 0.6
    iou[1::2, :, 1] = 0.8

    def choose(draws: select.Draws) -> list[Layers]:
        return [select.mask_layers(iou[draw], 0.0, 0.7, 15) for draw in draws]

    shares = select.stability(choose, iou, 3, seed=0)
    assert shares[1] == 1 and shares[3] == 0 and 0.2 < shares[2] < 0.8
    assert select.Selection("r", {}, (1,), bootstrap=shares).borderline == (2,)


def test_so_many_prompts_can_tell_a_layer_from_chance() -> None:
    rng = np.random.default_rng(2)
    for layers in (8, 42):
        for count, found in ((select.least_prompts(layers), (3,)), (select.least_prompts(layers) - 2, ())):
            drops = rng.normal(0, 1e-4, (count, layers))
            drops[:, 2] += 1
            assert select.outliers(drops) == found


@pytest.mark.parametrize("known", [2, 3])
def test_videos_without_truth_are_in_no_draw(known: int) -> None:
    """Of few known ones among many, draws of all would be without any now and then."""
    iou, mse = profile(0.2, 0.9, videos=16), profile(4.0, 1.5, videos=16)
    iou[known:], mse[known:] = np.nan, np.nan
    few = np.full(16, 8.0)

    def joined(sets: Collection[Layers]) -> dict[Layers, np.ndarray]:
        best = {s: iou[..., [n - 1 for n in s]].max(-1, keepdims=True, initial=0) for s in sets}
        return {s: np.maximum(iou, own) for s, own in best.items()}

    evidence = Evidence(
        iou=iou,
        matches=MatchScores(mse=mse, median=mse, pck1=1 / mse, pck2=1 / mse, points=mse),
        still=MatchScores(mse=few, median=few, pck1=1 / few, pck2=1 / few, points=few),
        share=0.1,
        grid=Grid(1, 2, 2),
        timesteps=range(5),
        seed=0,
        joined_ious=joined,
    )
    for rule in MASK_RULES:
        chosen, figure = choose_masks(evidence, rule)
        assert chosen.bootstrap == {1: 0.0, 2: 1.0} and chosen.tau_interval == (0, 0)
        assert not np.isnan(figure["by_layer_interval"]).any()
    ranked, figure = rank_matches(evidence, 1)
    settled, _ = settle_matches(
        evidence, ranked, figure, MatchScores(*(each[..., 1] for each in evidence.matches))
    )
    assert settled.bootstrap == {1: 0.0, 2: 1.0} and settled.tau_interval == (0, 0)


def test_vital_layers_of_both_scores_and_those_that_change_content_alone() -> None:
    rng = np.random.default_rng(1)
    quality = np.concatenate([np.full((10, 1), 0.9), 0.9 - rng.normal(0, 1e-3, (10, 8))], axis=1)
    likeness = np.concatenate([np.ones((10, 1)), 1 - rng.normal(0, 1e-3, (10, 8))], axis=1)
    quality[:, 3] -= 0.5
    likeness[:, [3, 6]] -= 0.5
    quality[:, 6] = 0.91  # without it, the video is another, but as good
    chosen, figure = choose_vital(quality, likeness, "us", "outliers", 2, seed=0)
    assert chosen.layers == (3,) and figure["likeness"]["chosen"] == [3, 6]
    assert figure["overlap"] == 0.5 and figure["content_only"] == [6]
    flat, _ = choose_vital(likeness * 0 + 0.5, likeness, "us", "outliers", 2, seed=0)
    assert len(flat.layers) == 2 and "stands out" in flat.warnings[0]
    assert choose_vital(quality, likeness, "us", "all", 2, seed=0)[0].layers == tuple(range(1, 9))
