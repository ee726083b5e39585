"""The readers: right or silent on clips, clean and worn, and silent where there is nothing to read."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch

from bachvid.pictures.frames import to_frames
from bachvid.stage.calibration import Calibration, blurred_and_noisy, calibrate_readers
from bachvid.stage.read_stage import read_stage
from bachvid.stage.readers import read
from bachvid.stage.render import clip_phases, render, render_stage
from bachvid.stage.silhouette import STILL, action_of, follow, silhouette
from bachvid.stage.world import LANDMARK, VERBS, Clip, sample_clip


@pytest.mark.parametrize(
    ("height", "clips", "blur", "noise"), [(64, 2, 0.0, 0.0), (64, 2, 0.6, 8.0), (128, 1, 0.6, 8.0)]
)
def test_readers_are_right_or_silent(height: int, clips: int, blur: float, noise: float) -> None:
    found = calibrate_readers("worn", blurred_and_noisy(blur, noise), clips, height=height, seed=5)
    assert found.admitted, found
    assert found.unread <= 0.05 and found.unread_cells <= 0.3


def test_a_calibration_below_one_bar_is_not_admitted() -> None:
    good = Calibration("fine", 1, 0.95, 0.2, 0.99, 0.99, 1.0, 0.99, 0.0, 0.0)
    assert good.admitted
    worse: list[dict[str, Any]] = [
        {"mask_iou": 0.94},
        {"uv_error": 0.21},
        {"attributes": 0.98},
        {"badge": 0.98},
        {"action": 0.99},
        {"cells": 0.98},
    ]
    assert not any(dataclasses.replace(good, **change).admitted for change in worse)


@pytest.mark.parametrize("verb", VERBS)
def test_every_action_has_its_track(verb: str) -> None:
    clip = dataclasses.replace(sample_clip(random.Random(8)), verb=verb, where="right", heading=1)
    track = follow(render([clip], clip_phases(1, 5), 64, 96).mask[0])
    assert track is not None
    seen = STILL if verb in ("stands", "waves") else verb
    turns = 1 if verb in ("walks", "leaps", "bows") else None
    assert action_of(track) == (seen, None if verb == "leaps" else "right", turns)


@pytest.mark.parametrize("verb", VERBS)
def test_no_action_of_the_world_is_left_open(verb: str) -> None:
    rng = random.Random(1)
    clips = [dataclasses.replace(sample_clip(rng), verb=verb) for _ in range(32)]
    tracks = [follow(mask) for mask in render(clips, clip_phases(32, 5), 64, 96).mask]
    assert {action_of(track).verb for track in tracks if track} == {
        STILL if verb in ("stands", "waves") else verb
    }


@pytest.mark.parametrize("verb", ["stands", "waves"])
def test_arms_tell_waving_from_standing(verb: str) -> None:
    clip = dataclasses.replace(sample_clip(random.Random(8)), verb=verb, where="left")
    shown = render([clip], clip_phases(1, 3), 64, 96)
    assert read(to_frames(shown.video[0])).action == (verb, "left", None)


@pytest.mark.parametrize("verb", ["stands", "crouches"])
def test_a_puppet_whose_top_pales_away_does_not_crouch(verb: str) -> None:
    clip = dataclasses.replace(sample_clip(random.Random(8)), verb=verb, where="left", accessory="hat")
    shown = render([clip], clip_phases(1, 5), 64, 96)
    video, rows = shown.video[0], shown.mask[0].any(2)
    for frame in (1, 2, 3):
        top = int(rows[frame].nonzero()[0])
        video[:, frame, top : top + 5] = render_stage([clip], 64, 96)[0, :, top : top + 5]
    track = follow(silhouette((video.movedim(1, 0) + 1) * 127.5))
    assert track is not None and action_of(track).verb == "crouches"
    assert read(to_frames(video)).action == (verb, "left", None)


def test_an_empty_stage_has_no_puppet() -> None:
    clip = sample_clip(random.Random(1))
    stage = render_stage([clip], 64, 96)[:, :, None].expand(-1, -1, 3, -1, -1)
    found = read(to_frames(stage[0]))
    assert not found.mask.any() and found.clip is None and found.action == (None, None, None)
    assert {name for name, value in found.stated.items() if value is not None} == {"place", "sky", "landmark"}
    assert set(found.hidden.values()) == {None} and set(found.badge) == {None}
    assert found.cells == (*clip.layout, *clip.sky_slots, *clip.front)  # nothing stands before anything


def test_a_slot_behind_the_puppet_is_not_guessed() -> None:
    clip = sample_clip(random.Random(2))
    stage = (render_stage([clip], 64, 96) + 1) * 127.5
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, :, 4:20] = True  # nobody can say what stands at the left
    found = read_stage(stage, mask)
    states = (*clip.layout, *clip.sky_slots, *clip.front)
    assert all(cell in (state, None) for cell, state in zip(found.cells, states, strict=True))
    assert found.cells[0] is None and None not in found.cells[2:6]


def _between(clip: Clip, other: Clip, share: float) -> torch.Tensor:
    """A stage (1, 3, H, W) of 255 that is one clip's but for a share of another's."""
    return (render_stage([clip], 64, 96).lerp(render_stage([other], 64, 96), share) + 1) * 127.5


def test_a_pale_landmark_is_read_and_one_between_two_is_not() -> None:
    nowhere = torch.zeros(1, 64, 96, dtype=torch.bool)
    clip = dataclasses.replace(
        sample_clip(random.Random(2)), landmark="tent", layout=(0, 1, 2, LANDMARK, 0, 1)
    )
    bare = dataclasses.replace(clip, layout=(0, 1, 2, 0, 0, 1))
    gate = dataclasses.replace(clip, landmark="gate")
    found = read_stage(_between(clip, bare, 0.35), nowhere)
    assert (found.landmark, found.landmark_slot, found.cells[3]) == ("tent", 3, LANDMARK)
    assert read_stage(_between(clip, gate, 0.5), nowhere).landmark is None
    assert read_stage(_between(bare, bare, 0.5), nowhere).landmark is None


def test_a_landmark_twice_is_one_and_two_landmarks_are_none() -> None:
    nowhere = torch.zeros(1, 64, 96, dtype=torch.bool)
    tent = dataclasses.replace(
        sample_clip(random.Random(2)), landmark="tent", layout=(LANDMARK, 1, 0, 0, 0, 0)
    )
    again = dataclasses.replace(tent, layout=(LANDMARK, 1, 0, 0, 0, LANDMARK))
    gate = dataclasses.replace(again, landmark="gate")
    left, right = render_stage([again, gate], 64, 96)
    both = torch.cat([left[:, :, :48], right[:, :, 48:]], 2)
    assert read_stage((left[None] + 1) * 127.5, nowhere).landmark == "tent"
    assert read_stage((both[None] + 1) * 127.5, nowhere).landmark is None


def test_what_the_world_cannot_show_is_off_the_palette() -> None:
    stage = to_frames(
        render_stage([sample_clip(random.Random(4))], 64, 96)[:, :, None].expand(-1, -1, 2, -1, -1)[0]
    )
    assert read(stage).off_palette < 0.03
    stage[:, :, :48, 0] = 0  # neon, but too cool for a puppet
    stage[:, :, :48, 1:] = np.random.default_rng(0).choice([0, 255], (2, 64, 48, 2))
    assert read(stage).off_palette > 0.3


def test_uv_covers_the_mask_and_nothing_else() -> None:
    shown = render([sample_clip(random.Random(6))], clip_phases(1, 3), 64, 96)
    found = read(to_frames(shown.video[0]))
    assert found.uv.isfinite().all() and (found.uv[~found.mask] == 0).all()
    assert (found.uv[found.mask].abs().sum(-1) > 0).float().mean() > 0.999
    assert found.known[found.mask].float().mean() > 0.9


def test_the_silhouette_is_the_largest_part_corners_included() -> None:
    video = torch.zeros(2, 3, 32, 48)
    video[:, 1] = 90.0
    video[:, 0, 4:14, 4:14] = 200.0
    video[:, 0, 14:24, 14:24] = 200.0  # touches the first only at a corner
    video[:, 0, 2:9, 30:47] = 200.0  # larger than either, smaller than both
    video[1] = 0.0
    found = silhouette(video)
    assert found[0].sum() == 200 and not found[0, :, 30:].any()
    assert not found[1].any()


@pytest.mark.parametrize("shape", [(2, 64, 96), (1, 64, 96, 3), (2, 64, 64, 3)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="clip"):
        read(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("verb", VERBS)
def test_the_whole_picture_tells_what_a_track_leaves_open(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = dataclasses.replace(sample_clip(random.Random(3)), verb=verb, where="right", heading=1)
    shown = render([clip], clip_phases(1, 5), 64, 96)
    monkeypatch.setattr("bachvid.stage.silhouette._verb", lambda track: None)
    turns = 1 if verb in ("walks", "leaps", "bows") else None
    assert read(to_frames(shown.video[0])).action == (verb, None if verb == "leaps" else "right", turns)
