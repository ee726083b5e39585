"""The small world: what is drawn at random, what is held out, and what captions say."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bachvid.stage import world
from bachvid.stage.captions import ADJECTIVES, all_words, caption, corpus
from bachvid.stage.world import Clip, Combination, is_held_out, sample_clip, sample_group, share_hidden

clips = st.builds(lambda seed, held: sample_clip(random.Random(seed), held), st.integers(0), st.booleans())
rngs = st.none() | st.integers(0).map(random.Random)


def vocabulary() -> list[Combination]:
    """Every combination of the world."""
    words = (
        world.PLACES,
        world.SKIES,
        world.LANDMARKS,
        world.KINDS,
        world.COLOURS,
        world.ACCESSORIES,
        world.CLOTH_COLOURS,
    )
    return [Combination(*each) for each in itertools.product(*words)]


@given(st.integers(0), st.booleans())
def test_held_out_combinations_are_never_drawn_for_training(seed: int, held_out: bool) -> None:
    assert is_held_out(sample_clip(random.Random(seed), held_out)) == held_out


def test_the_held_out_tenth_is_the_same_for_ever() -> None:
    held = [" ".join(combination) for combination in vocabulary() if is_held_out(combination)]
    assert len(held) == 3922
    assert hashlib.sha256("\n".join(held).encode()).hexdigest()[:16] == "c579b51a01ba730e"


@given(st.integers(0), st.integers(2, 17))
def test_a_group_shares_what_is_stated_and_nothing_else(seed: int, prompts: int) -> None:
    group = sample_group(random.Random(seed), prompts)
    assert len({clip.combination for clip in group}) == 1 and is_held_out(group[0])
    sided = (*world.LOCATED_VERBS, "walks")  # elsewhere the location is not stated
    actions = {(clip.verb, clip.where if clip.verb in sided else "") for clip in group}
    assert len(actions) == prompts
    assert len({clip.stage_tint for clip in group}) == prompts  # drawn anew for every clip
    alike = share_hidden(group)
    for name in (*world.STATED, *world.HIDDEN_STAGE, *world.HIDDEN_PUPPET):
        assert len({getattr(clip, name) for clip in alike}) == 1
    assert [(clip.verb, clip.scale) for clip in alike] == [(clip.verb, clip.scale) for clip in group]


@pytest.mark.parametrize("prompts", [0, 18])
def test_a_group_has_as_many_prompts_as_there_are_actions(prompts: int) -> None:
    with pytest.raises(ValueError, match="1 to 17"):
        sample_group(random.Random(0), prompts)


@given(clips)
def test_a_stage_has_one_landmark_and_one_sun_at_most(clip: Clip) -> None:
    assert clip.layout.count(world.LANDMARK) == 1 and clip.layout[clip.landmark_slot] == world.LANDMARK
    assert clip.sky_slots.count(2) <= 1
    assert clip.heading == {"left": -1, "right": 1}.get(
        clip.where if clip.verb == "walks" else "", clip.heading
    )


# --- captions ---------------------------------------------------------------------------------------------


@given(clips, rngs)
def test_background_and_character_are_built_alike(clip: Clip, rng: random.Random | None) -> None:
    said = caption(clip, rng)
    content = {*ADJECTIVES, *clip.combination, "sky", "badge"}

    def skeleton(part: str) -> list[str]:
        words = ["a" if word == "an" else word for word in part.replace(",", " ,").split()]
        return ["*" if word in content else word for word in words]

    assert skeleton(said.background) == skeleton(said.character)


@given(clips, rngs)
def test_what_is_stated_is_said_in_its_part(clip: Clip, rng: random.Random | None) -> None:
    said = caption(clip, rng)
    stated = clip.combination._asdict()
    for name, word in stated.items():
        part = said.background if name in ("place", "sky", "landmark") else said.character
        assert word in part.replace(",", "").split()
    if rng is None and clip.verb in world.LOCATED_VERBS:
        assert clip.verb in said.action and clip.where in said.action
    if clip.verb == "walks":
        assert clip.where in said.action


@given(st.integers(0), st.integers(0), st.integers(0))
def test_what_is_hidden_is_never_said(seed: int, other: int, wording: int) -> None:
    clip, stranger = sample_clip(random.Random(seed)), sample_clip(random.Random(other))
    kept = {name: getattr(clip, name) for name in (*world.STATED, "verb", "where")}
    changed = dataclasses.replace(stranger, **kept)
    assert caption(clip, random.Random(wording)) == caption(changed, random.Random(wording))


def test_some_captions_leave_the_location_out() -> None:
    rng = random.Random(0)
    clip = dataclasses.replace(sample_clip(rng), verb="waves", where="left")
    located = ["left" in caption(clip, rng).action for _ in range(400)]
    assert 0.7 < sum(located) / len(located) < 0.9


def test_every_word_is_known_and_prompts_are_short() -> None:
    prompts = corpus(random.Random(0), 4000)
    words = [prompt.replace(",", " ,").replace(".", " .").split() for prompt in prompts]
    assert {word for each in words for word in each} == {*all_words(), ",", "."}
    assert max(len(each) for each in words) <= 40
