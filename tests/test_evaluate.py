"""The evaluation on the stage: every number where it must fall, and a whole run at toy size."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bachvid.evaluate.agreement import Watched, agreement, guards, read_group, rightness
from bachvid.evaluate.metrics import (
    CAP,
    iou,
    jitter,
    match_errors,
    mean,
    motion,
    nearest_partner,
    over_pairs,
    psnr_background,
    psnr_foreground,
    smoothness,
    textures,
    token_uv,
    true_partners,
)
from bachvid.models.grid import Grid
from bachvid.pictures.frames import Frames, to_frames
from bachvid.stage import world
from bachvid.stage.render import Render, clip_phases, render
from bachvid.stage.watch import token_masks
from bachvid.stage.world import EYES, Clip, sample_group, share_hidden

GRID = Grid(5, 8, 12)
SHAPE = (2, 6, 8)  # F H W of made-up frames
NOBODY = np.zeros(SHAPE, dtype=bool)


def grey(value: int) -> Frames:
    return np.full((*SHAPE, 3), value, dtype=np.uint8)


def left_half() -> np.ndarray:
    mask = NOBODY.copy()
    mask[:, :, :4] = True
    return mask


# PSNR-BG.


@pytest.mark.parametrize("offset", [1, 7, 100])
def test_a_constant_offset_of_the_stage_gives_its_own_psnr(offset: int) -> None:
    expected = 20 * math.log10(255 / offset)
    assert psnr_background(grey(50), grey(50 + offset), NOBODY, left_half()) == pytest.approx(expected)


def test_psnr_of_the_stage_is_blind_to_both_puppets_and_symmetric() -> None:
    a, b, puppet = grey(50), grey(60), left_half()
    noisy = b.copy()
    noisy[puppet] = np.random.default_rng(0).integers(0, 256, (puppet.sum(), 3))
    clean = psnr_background(a, b, NOBODY, puppet)
    assert psnr_background(a, noisy, NOBODY, puppet) == clean
    assert psnr_background(noisy, a, puppet, NOBODY) == clean


def test_soft_edges_of_puppets_are_no_error_of_the_stage() -> None:
    puppet = np.zeros((1, 32, 48), dtype=bool)
    puppet[:, 8:24, 8:24] = True
    a = np.full((*puppet.shape, 3), 50, dtype=np.uint8)
    for beside, counts in ((1, False), (2, False), (3, True)):  # an outline is two pixels of 32
        b = a.copy()
        b[:, 16, 23 + beside] += 20
        found = psnr_background(a, b, puppet, np.zeros_like(puppet))
        assert (found < CAP) == counts


def test_psnr_is_computed_in_more_than_eight_bits() -> None:
    assert psnr_background(grey(0), grey(255), NOBODY, NOBODY) == 0
    assert psnr_background(grey(9), grey(9), NOBODY, NOBODY) == CAP


def test_frames_that_hide_the_stage_are_left_out() -> None:
    everywhere = ~NOBODY
    assert math.isnan(psnr_background(grey(0), grey(1), NOBODY, everywhere))
    everywhere[0] = False  # the first frame shows the stage, and differs by 10; the second by 1
    b = grey(1)
    b[0] = 10
    assert psnr_background(grey(0), b, NOBODY, everywhere) == pytest.approx(20 * math.log10(25.5))


# Pairs and masks: items 3 and 8.


def test_every_unordered_pair_counts_once() -> None:
    seen: list[tuple[int, int]] = []

    def measure(a: int, b: int) -> float:
        seen.append((a, b))
        return math.nan if a == 0 else a + b

    assert over_pairs(measure, range(5)) == mean([3, 4, 5, 5, 6, 7])
    assert len(set(seen)) == len(seen) == 10
    assert math.isnan(over_pairs(measure, [1]))


def test_half_overlapping_boxes_have_a_third_in_common() -> None:
    a, b = torch.zeros(2, 4, 8, dtype=torch.bool)
    a[:, :4], b[:, 2:6] = True, True
    assert iou(a, b) == pytest.approx(1 / 3)
    assert math.isnan(iou(a & ~a, b & ~b))
    assert iou(torch.ones_like(b), b) == b.float().mean()


# Motion.


def test_a_steady_change_is_smooth_and_a_jump_is_not() -> None:
    steady = np.concatenate([grey(value)[:1] for value in (0, 10, 20, 30, 40)])
    assert smoothness(steady) == 1 and motion(steady) == 10 / 255
    jump = steady.copy()
    jump[1] = 40  # blending says 10; the other middle frame is as foretold
    assert smoothness(jump) == pytest.approx(1 - 30 / 2 / 255)
    assert motion(jump) == pytest.approx((40 + 20 + 10 + 10) / 4 / 255)
    assert smoothness(steady[:4]) == 1  # the last frame has none beside it
    assert smoothness(np.concatenate([grey(0)[:1], grey(255)[:1], grey(0)[:1]])) == 0  # wider than 8 bits


def test_jitter_is_the_second_difference_of_the_place() -> None:
    mask = np.zeros((4, 10, 20), dtype=bool)
    for frame, column in enumerate((2, 5, 8, 13)):
        mask[frame, 4:6, column : column + 3] = True
    assert jitter(mask) == pytest.approx((0 + 2) / 2 / 10)
    mask[2] = False
    assert math.isnan(jitter(mask))


# Matches: item 10.


def everywhere(grid: Grid) -> torch.Tensor:
    """Body coordinates in which every token of a frame shows a place of its own."""
    return grid.places()[:, 1:].float() * 0.125


@given(st.integers(-2, 2), st.integers(-3, 3))
def test_a_shifted_match_has_the_squared_length_of_the_shift(down: int, right: int) -> None:
    grid = Grid(2, 6, 8)
    uv = everywhere(grid)
    inner = (uv[:, 0] >= 0.25) & (uv[:, 0] <= 0.375) & (uv[:, 1] >= 0.375) & (uv[:, 1] <= 0.5)
    frame_uv = torch.where(inner[:, None], uv, torch.nan)
    partner = (torch.arange(grid.tokens) + down * grid.width + right) % grid.tokens
    errors = match_errors(partner, true_partners(frame_uv, uv, grid), grid)
    assert errors.tolist() == [down**2 + right**2] * int(inner.sum())


def test_random_matches_have_the_mean_squared_distance_of_the_box() -> None:
    grid = Grid(2, 16, 24)
    uv = everywhere(grid)
    partner = torch.randint(grid.tokens, (50, grid.tokens), generator=torch.Generator().manual_seed(0))
    errors = torch.cat([match_errors(each, true_partners(uv, uv, grid), grid) for each in partner])
    expected = (16**2 - 1) / 6 + (24**2 - 1) / 6  # of two independent uniform integers each
    assert errors.mean().item() == pytest.approx(expected, rel=0.02)


def test_a_partner_in_any_frame_is_right_where_that_frame_shows_the_place() -> None:
    grid = Grid(2, 6, 8)
    uv = everywhere(grid)
    there = uv.clone()
    there[grid.tokens // 2 :] = uv[: grid.tokens // 2].roll(
        1, dims=0
    )  # the second frame stands one to the right
    partner = (torch.arange(grid.tokens) % (grid.tokens // 2) + grid.tokens // 2 + 1) % grid.tokens
    frame_uv = torch.full_like(uv, torch.nan)
    frame_uv[9] = uv[9]
    assert match_errors(partner, true_partners(frame_uv, there, grid), grid).tolist() == [0]
    assert match_errors(torch.arange(grid.tokens), true_partners(frame_uv, there, grid), grid).tolist() == [0]
    frame_uv[9] += 5  # a place that the identity never shows
    assert not len(match_errors(partner, true_partners(frame_uv, there, grid), grid))


def test_the_nearest_partner_shows_the_same_place_or_there_is_none() -> None:
    grid = Grid(2, 6, 8)
    uv = everywhere(grid)
    uv[grid.tokens // 2 :] += 100  # the second frame shows other places
    frame_uv = torch.full_like(uv, torch.nan)
    frame_uv[7], frame_uv[9], frame_uv[11] = uv[20] + 0.03, uv[60], torch.tensor([50.0, 50.0])
    found = nearest_partner(frame_uv, torch.where(uv < 90, uv, torch.nan))
    assert found[7] == 20 and found[9] == -1 and found[11] == -1
    assert nearest_partner(frame_uv, uv)[9] == 60
    assert (found >= 0).sum() == 1


# Truth from renders.


def group(seed: int, videos: int = 3) -> list[Clip]:
    return sample_group(random.Random(seed), videos)


def filmed(clips: list[Clip]) -> tuple[Render, list[Frames]]:
    """The clips as a decoder might show them: with noise of 4 of 255."""
    film = render(clips, clip_phases(len(clips), 5), 64, 96)
    noise = torch.randn(film.video.shape, generator=torch.Generator().manual_seed(0))
    return film, [to_frames(video) for video in film.video + noise * (4 / 127.5)]


def test_tokens_know_their_place_on_the_puppet() -> None:
    film, _ = filmed(group(0))
    for n in range(3):
        uv = token_uv(film.mask[n], film.uv[n], GRID)
        shown = ~uv[:, 0].isnan()
        assert torch.equal(shown, token_masks(film.mask[n : n + 1].float(), GRID)[0])
        errors = match_errors(torch.arange(GRID.tokens), true_partners(uv, uv, GRID), GRID)
        assert len(errors) == shown.sum() > 20
        assert errors.max() == 0


def test_a_texture_does_not_know_pose_and_place() -> None:
    same = share_hidden(group(1))
    (film, frames), (other, strangers) = filmed(same), filmed(group(1))
    ours = [textures(f, m.numpy(), uv.numpy()) for f, m, uv in zip(frames, film.mask, film.uv, strict=True)]
    theirs = [
        textures(f, m.numpy(), uv.numpy()) for f, m, uv in zip(strangers, other.mask, other.uv, strict=True)
    ]
    assert over_pairs(psnr_foreground, ours) > over_pairs(psnr_foreground, theirs) + 5


# The readings of a group, and where simulated generators must fall.

Groups = list[list[Watched]]


@pytest.fixture(scope="module")
def asked() -> list[list[Clip]]:
    return [group(seed, 2) for seed in range(2)]


@pytest.fixture(scope="module")
def vanilla(asked: list[list[Clip]]) -> Groups:
    """Every hidden attribute left to chance."""
    return [watch(clips) for clips in asked]


@pytest.fixture(scope="module")
def oracle(asked: list[list[Clip]], vanilla: Groups) -> Groups:
    """Every hidden attribute that of the identity."""
    return [[seen[0], *watch(share_hidden(clips)[1:])] for clips, seen in zip(asked, vanilla, strict=True)]


def watch(clips: list[Clip]) -> list[Watched]:
    return [Watched.of(frames) for frames in filmed(clips)[1]]


def measured(groups: Groups, asked: list[list[Clip]]) -> dict[str, float]:
    """The means over groups of all that is read, held against the clips asked for."""
    found = [agreement(seen) | rightness(seen, clips) for seen, clips in zip(groups, asked, strict=True)]
    return {name: mean(each[name] for each in found) for name in found[0]}


def test_vanilla_does_what_is_asked_and_scatters_in_the_rest(
    asked: list[list[Clip]], vanilla: Groups
) -> None:
    found = measured(vanilla, asked)
    assert found["action"] == found["stated"] == 1
    assert found["lost"] == found["unread"] == 0
    assert found["psnr_bg"] < 22 and found["psnr_fg"] < 16
    assert found["hidden"] < 0.8 and found["cells"] < 0.6


def test_an_oracle_agrees_in_everything(asked: list[list[Clip]], oracle: Groups) -> None:
    found = measured(oracle, asked)
    assert found["action"] == found["hidden"] == found["attributes"] == found["badge"] == found["cells"] == 1
    assert found["psnr_bg"] > 28 and found["psnr_fg"] > 20


def test_only_the_action_tells_a_copy_from_an_oracle(asked: list[list[Clip]], vanilla: Groups) -> None:
    found = measured([[seen[0], seen[0]] for seen in vanilla], asked)
    assert found["hidden"] == found["cells"] == 1 and found["psnr_bg"] == found["psnr_fg"] == CAP
    assert found["action"] == 0.5


def test_a_shared_stage_leaves_the_puppet_to_chance(asked: list[list[Clip]], vanilla: Groups) -> None:
    clips = asked[0]
    stage = {name: getattr(clips[0], name) for name in world.HIDDEN_STAGE}
    found = agreement([vanilla[0][0], *watch([replace(clips[1], **stage)])])
    chance = agreement(vanilla[0])
    assert found["cells"] == 1 and found["psnr_bg"] > chance["psnr_bg"] + 8
    assert found["hidden"] == chance["hidden"]
    assert found["psnr_fg"] == pytest.approx(chance["psnr_fg"], abs=1)


def test_a_shared_puppet_leaves_the_stage_to_chance(asked: list[list[Clip]], vanilla: Groups) -> None:
    clips = asked[0]
    puppet = {name: getattr(clips[0], name) for name in world.HIDDEN_PUPPET}
    found = agreement([vanilla[0][0], *watch([replace(clips[1], **puppet)])])
    chance = agreement(vanilla[0])
    assert found["hidden"] == 1 and found["psnr_fg"] > chance["psnr_fg"] + 3
    assert found["cells"] == chance["cells"]
    assert found["psnr_bg"] == pytest.approx(chance["psnr_bg"], abs=1)


def test_strangers_agree_no_more_than_chance_has_it(vanilla: Groups, oracle: Groups) -> None:
    """The floor: frame videos of one group beside the identity of another."""
    pairs = zip(oracle, [oracle[1][0], oracle[0][0]], strict=True)
    found = [agreement([stranger, *group[1:]]) for group, stranger in pairs]
    floor = {name: mean(each[name] for each in found) for name in found[0]}
    chance = {name: mean(agreement(group)[name] for group in vanilla) for name in found[0]}
    assert floor["psnr_bg"] < chance["psnr_bg"] and floor["psnr_fg"] < chance["psnr_fg"] + 1
    assert floor["hidden"] < 0.8 and floor["cells"] < 0.6


def test_a_copy_overlaps_itself(vanilla: Groups, oracle: Groups) -> None:
    assert guards([vanilla[0][0]] * 2)["copied"] == 1
    assert all(guards(group)["copied"] < 0.8 for group in oracle)
    assert guards(oracle[0])["motion"] > 0 and guards(oracle[0])["jitter"] > 0


def test_a_video_without_a_puppet_is_lost_and_in_no_pair(asked: list[list[Clip]], oracle: Groups) -> None:
    nobody = Watched.of(np.zeros_like(oracle[0][0].frames))
    found, whole = agreement([*oracle[0], nobody]), agreement(oracle[0])
    assert (found.pop("lost"), whole.pop("lost")) == (1, 0)
    assert found.pop("off_palette") > whole.pop("off_palette")
    assert found == whole
    assert rightness([nobody], asked[0][:1]) == {
        "action": 0, "stated": 0, "unread_action": 1, "unread_stated": pytest.approx(1, abs=3 / 7)
    }  # fmt: skip


def test_attributes_agree_as_what_they_are_nearest_to_and_a_hidden_cell_with_all(oracle: Groups) -> None:
    one, other = oracle[0]
    reading = other.reading
    unsure = replace(reading, hidden=reading.hidden | {"eyes": None}, badge=(None, None, *reading.badge[2:]))
    unsure = replace(unsure, cells=(None, *reading.cells[1:]))
    found = agreement([one, replace(other, reading=unsure)])
    assert found["attributes"] == found["badge"] == found["hidden"] == found["cells"] == 1
    assert found["unread"] == 3 / (2 * 9)
    clip = reading.clip
    assert clip is not None
    eyes = next(eyes for eyes in EYES if eyes != clip.eyes)
    changed = replace(clip, eyes=eyes, badge=((clip.badge[0] + 1) % 3, *clip.badge[1:]))
    found = agreement([one, replace(other, reading=replace(reading, clip=changed))])
    assert (found["attributes"], found["badge"], found["hidden"]) == (4 / 5, 3 / 4, (4 + 3 / 4) / 6)


def test_an_action_is_right_without_what_its_caption_leaves_open(asked: list[list[Clip]]) -> None:
    spin = replace(asked[0][0], verb="spins", where="left")
    frames = filmed([spin])[1]
    seen = [Watched.of(frames[0])]
    assert rightness(seen, [replace(spin, where="right", heading=-spin.heading)])["action"] == 1
    assert rightness(seen, [replace(spin, verb="stands")])["action"] == 0
    assert "action" not in agreement(seen) and read_group(frames, [spin])["action"] == 1


def test_a_located_action_must_be_where_it_was_asked_for(asked: list[list[Clip]]) -> None:
    jump = replace(asked[0][0], verb="jumps", where="left")
    seen = watch([jump])
    assert rightness(seen, [jump])["action"] == 1
    assert rightness(seen, [replace(jump, where="right")])["action"] == 0
