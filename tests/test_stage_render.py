"""The renderer: the colour rule, exact truth, and pictures that do not depend on batch or size."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bachvid.stage.body import BADGE_CELL, BADGE_MIDDLE, dyes
from bachvid.stage.palette import PUPPET_GAP, STAGE_GAP
from bachvid.stage.render import clip_phases, render, render_stage
from bachvid.stage.world import VERBS, Clip, sample_clip

few = settings(max_examples=8, deadline=None)
clips = st.builds(lambda seed, held: sample_clip(random.Random(seed), held), st.integers(0), st.booleans())
heights = st.sampled_from([64, 96])


def acting(verb: str, seed: int = 0) -> Clip:
    clip = sample_clip(random.Random(seed))
    return dataclasses.replace(clip, verb=verb, where="left" if verb == "walks" else "middle", heading=-1)


@few
@given(clips, st.floats(0, 1), heights)
def test_stage_is_cool_and_puppet_is_warm_everywhere(clip: Clip, phase: float, height: int) -> None:
    shown = render([clip], torch.tensor([[phase]]), height, height * 3 // 2)
    levels = ((shown.video + 1) * 127.5).round()
    gap = levels[:, 0] - levels[:, 1]
    assert gap[shown.coverage < 1e-4].max() <= -STAGE_GAP
    assert gap[shown.coverage > 1 - 1e-4].min() >= PUPPET_GAP
    assert levels.min() >= 0 and levels.max() <= 255


@few
@given(clips, clips, heights)
def test_a_clip_looks_the_same_alone_and_in_company(clip: Clip, other: Clip, height: int) -> None:
    alone = render([clip], clip_phases(1, 3), height, height * 3 // 2)
    group = [other] * 2 + [clip]
    together = render(group, clip_phases(3, 3), height, height * 3 // 2)
    for name in ("video", "coverage", "uv"):
        torch.testing.assert_close(getattr(together, name)[2:], getattr(alone, name), atol=1e-4, rtol=0)
    assert torch.equal(together.mask[2:], alone.mask)


@few
@given(clips, st.floats(0, 1))
def test_the_picture_does_not_depend_on_its_size(clip: Clip, phase: float) -> None:
    small, large = (render([clip], torch.tensor([[phase]]), height, height * 3 // 2) for height in (64, 128))
    halved = F.avg_pool2d(large.video[:, :, 0], 2)
    assert (halved - small.video[:, :, 0]).abs().mean() < 0.02  # soft edges are a pixel wide in both


@few
@given(clips, st.floats(0, 1))
def test_uv_is_where_the_badge_is_painted(clip: Clip, phase: float) -> None:
    clip = dataclasses.replace(clip, accessory="hat", scale=1.1)  # which leaves the badge free
    shown = render([clip], torch.tensor([[phase]]), 128, 192)
    levels = (shown.video[0, :, 0] + 1) * 127.5  # 3 H W
    off = shown.uv[0, 0] - torch.tensor(BADGE_MIDDLE)  # H W 2
    for number in range(4):
        middle = torch.tensor([(number % 2 - 0.5) * BADGE_CELL, (0.5 - number // 2) * BADGE_CELL])
        inside = ((off - middle).abs() < 0.3 * BADGE_CELL).all(-1) & shown.mask[0, 0]
        assert inside.any()
        colour = torch.tensor(dyes(clip)[f"cell {number}"])
        right = (levels[:, inside] - colour[:, None]).abs().amax(0) < 30
        if clip.verb in ("stands", "jumps", "walks"):
            assert right.float().mean() > 0.85  # a soft edge here and there
        else:
            assert right.float().mean() > 0.4  # an arm or a thin side view may cover half of a cell


@pytest.mark.parametrize("verb", VERBS)
def test_the_puppet_moves_in_every_action_but_standing(verb: str) -> None:
    shown = render([acting(verb)], clip_phases(1, 5), 64, 96)
    share = shown.coverage[0].flatten(1)
    changes = (share[1:] - share[:-1]).abs().sum(1) / share[0].sum()
    assert (changes == 0).all() if verb == "stands" else (changes > 0.02).all()


def test_walks_go_where_they_are_said_to_go() -> None:
    for where, heading in (("left", -1), ("right", 1)):
        clip = dataclasses.replace(acting("walks"), where=where, heading=heading)
        mask = render([clip], clip_phases(1, 2), 64, 96).mask[0]
        middle = [frame.nonzero()[:, 1].float().mean().item() for frame in mask]
        assert (middle[1] - middle[0]) * heading > 30


def test_behind_the_puppet_is_the_empty_stage() -> None:
    clip = acting("leaps", seed=3)
    shown = render([clip], clip_phases(1, 5), 64, 96)
    stage = render_stage([clip], 64, 96)[:, :, None].expand_as(shown.video)
    bare = (shown.coverage == 0)[:, None].expand_as(shown.video)
    torch.testing.assert_close(shown.video[bare], stage[bare], atol=1e-5, rtol=0)
    assert torch.equal(shown.mask, shown.coverage >= 0.5)
    assert (shown.uv[~shown.mask] == 0).all()


def test_other_shapes_are_refused() -> None:
    clip = acting("stands")
    with pytest.raises(ValueError, match="3 wide to 2 high"):
        render([clip], clip_phases(1, 2), 64, 64)
    with pytest.raises(ValueError, match="need phases"):
        render([clip], clip_phases(2, 2), 64, 96)
