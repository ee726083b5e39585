"""What an evaluation compares: pre-runs read again, the ways to make frame videos, plans, and their costs."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Generator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from small_stage import small_model

from bachvid.errors import UsageError
from bachvid.evaluate.cost import Meter, paper_cache_gb
from bachvid.evaluate.metrics import TOKEN
from bachvid.evaluate.plans import OPTIONS, PLANS, Ranking, Subject, depths, windows
from bachvid.evaluate.quality import borrowed
from bachvid.evaluate.runs import Method, draw_layers, mislead, oracle, shuffled, tell_truth
from bachvid.evaluate.scene import Scene, read
from bachvid.evaluate.studio import Studio, pre_run, together
from bachvid.method.frame import FrameVideo
from bachvid.method.group import Group, vanilla
from bachvid.method.match import Places
from bachvid.method.recipe import PRESETS, Recipe, load_preset
from bachvid.method.scout import Scouted, scout
from bachvid.models.checkpoint import open_checkpoint
from bachvid.sampling.flow_schedule import flow_schedule
from bachvid.sampling.schedule import trailing_timesteps

STEPS = 5
T = TypeVar("T")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = small_model(tmp_path_factory.mktemp("models") / "random-tiny")
    recipe = load_preset(folder / "preset.json").at(trailing_timesteps(STEPS))
    return Studio.open(open_checkpoint(folder), recipe, "cpu")


@pytest.fixture(scope="module")
def scene(studio: Studio) -> Scene:
    return Scene(studio, seed=0, number=0, prompts=2)


def result(steps: Generator[Any, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


# What was seen on the way.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tau_mask": 1, "tau_match": 3, "normalize": False, "smooth": True},
        {"tau_mask": 3, "tau_match": 1, "mask_layers": (1,), "match_layers": (1, 3)},
        {"tau_mask": 1, "tau_match": 1, "least_share": 0.99},  # no mask is ever believed
        {"tau_mask": 2, "tau_match": 3, "least_share": 0.99},
        {"tau_mask": 0, "tau_match": 0},
    ],
)
def test_a_pre_run_is_read_again_without_denoising(
    studio: Studio, scene: Scene, changes: dict[str, Any]
) -> None:
    recipe = replace(studio.recipe, **changes)
    known = scene.identity
    found = pre_run(scene.denoiser, recipe, known.take, known.trajectory)
    expected = result(scout(studio.denoiser(), recipe, scene.texts[0], scene.noise[0]))
    for name in ("tau", "believed"):
        assert getattr(found, name) == getattr(expected, name), name
    assert torch.equal(found.mask, expected.mask)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(found.features, expected.features, strict=True)
    )
    for ours, theirs in zip(found.trajectory, expected.trajectory, strict=False):
        assert torch.equal(ours, theirs)
    assert len(expected.trajectory) == found.tau + 1 and len(found.trajectory) == STEPS + 1


def test_the_identity_is_the_same_alone_and_together(studio: Studio, scene: Scene) -> None:
    """What lets one video serve every run of a group, and pre-runs be shared."""
    videos = [scene.identity, *scene.shared]
    identity, *others = [scene.seen(video, studio.recipe)[0] for video in videos]
    frames = together(scene.denoiser, studio.recipe, identity, others)
    whole = Group(studio.denoiser(), studio.recipe, scene.texts, scene.noise[:1] * 2)
    list(whole.run())
    steps = vanilla(studio.denoiser(), scene.texts, scene.noise[:1] * 2)
    alone = [take for progress, take in steps if progress.step == STEPS - 1]
    takes = [identity.take, *(frame.take for frame in frames)]
    for ours, expected in zip(takes, whole.takes, strict=True):
        assert torch.equal(ours.latents, expected.latents)
    for video, expected in zip(videos, alone, strict=True):
        assert torch.equal(video.take.latents, expected.latents)


def test_nothing_is_made_twice(studio: Studio, scene: Scene) -> None:
    recipe, video = studio.recipe, scene.identity
    seen, seconds = scene.seen(video, recipe)
    assert seconds > video.clock[seen.tau] > video.clock[1] > 0
    weaker = replace(recipe, mode="bg", kv_layers=(1,), window="frame", branches="both", refresh=True)
    assert scene.seen(video, weaker)[0] is seen
    for field in ("tau_mask", "tau_match", "normalize", "smooth", "mask_layers", "match_layers"):
        other = (
            1 if field.startswith("tau") else (1,) if field.endswith("layers") else not getattr(recipe, field)
        )
        assert scene.seen(video, replace(recipe, **{field: other}))[0] is not seen, field
    shown = Method(recipe)(scene)
    assert Method(recipe)(scene) is shown and Method(weaker)(scene) is not shown
    assert [*scene.alone] == [scene.identity, *scene.shared]


# What a frame video borrows.


def made(scene: Scene, recipe: Recipe, alter: Any = None) -> list[FrameVideo]:
    identity, *others = [scene.seen(video, recipe)[0] for video in (scene.identity, *scene.shared)]
    twins = scene.shared
    return together(
        scene.denoiser, recipe, identity, others, alter and (lambda frames: alter(scene, frames, twins))
    )


def test_random_matches_borrow_as_much_from_other_tokens(studio: Studio, scene: Scene) -> None:
    recipe = studio.recipe
    there, _ = scene.seen(scene.identity, recipe)
    for true, random_ in zip(made(scene, recipe), made(scene, recipe, mislead), strict=True):
        assert torch.equal(true.places.matched, random_.places.matched) and len(true.places.matched) > 3
        assert there.mask[random_.places.partners].all()
        assert not torch.equal(true.places.partners, random_.places.partners)
        assert not torch.equal(true.take.latents, random_.take.latents)


@pytest.fixture(scope="module")
def filmed(studio: Studio, scene: Scene) -> Scene:
    """The group as if its videos showed a puppet of six tokens, one token further to the right in the second.

    The second also shows a place of the puppet that the first never does.
    """
    grid = studio.grid()
    where = grid.places()  # N (frame, row, column)
    first = (where[:, 0] == 0) & (where[:, 1] >= 1) & (where[:, 1] < 3) & (where[:, 2] < 3)
    second = first.roll(1)
    new = second.clone()
    new[-1] = True
    body = where[:, 1:].float() * TOKEN
    staged = Scene(studio, seed=0, number=0, prompts=2)
    for name, mask, uv in (("identity", first, body), ("shared", new, body.roll(1, dims=0))):
        video = scene.identity if name == "identity" else scene.shared[0]
        seen = replace(video, mask=mask, uv=torch.where(mask[:, None], uv, torch.nan))
        setattr(staged, name, seen if name == "identity" else [seen])
    return staged


def test_true_masks_and_matches_are_those_of_the_puppets(studio: Studio, filmed: Scene) -> None:
    grid, there, (twin,) = studio.grid(), filmed.identity, filmed.shared
    (frame,) = made(filmed, studio.recipe, tell_truth)
    places, puppet = frame.places, there.mask.nonzero()[:, 0]
    assert len(puppet) == 6 and frame.note is None
    assert torch.equal(places.partners, puppet) and torch.equal(places.matched, puppet + 1)
    assert places.foreground.tolist() == [*places.matched.tolist(), grid.tokens - 1]
    assert torch.equal(places.background, (~(twin.mask | there.mask)).nonzero()[:, 0])
    assert borrowed(places, twin, there, grid) == {"mask_iou": 1, "pck1": 1}

    turned = replace(places, partners=places.partners.roll(3), foreground=places.matched)  # a row off
    assert borrowed(turned, twin, there, grid) == {"mask_iou": 6 / 7, "pck1": 1}
    turned = replace(places, partners=places.partners.roll(1))  # the first of every row is two off
    assert borrowed(turned, twin, there, grid)["pck1"] == pytest.approx(4 / 6)
    nothing = Places(grid.tokens, *[places.foreground[:0]] * 5)
    found = borrowed(nothing, twin, there, grid)
    assert found["mask_iou"] == 0 and math.isnan(found["pck1"])


def test_the_oracle_agrees_and_shuffled_groups_are_read_beside_strangers(scene: Scene) -> None:
    shown = oracle(seen_through_vae=False)(scene)
    found = read(scene, shown)
    assert len(shown.frames) == 1 and found["success"] == 1
    assert found["psnr_bg"] > 28 and found["psnr_fg"] > 18 and found["copied"] < 0.9
    pairs = shuffled(lambda scene: shown)(scene).sets
    assert pairs is not None and len(pairs) == 1
    stranger = Scene(scene.studio, scene.seed, scene.number + 1, 2)
    assert stranger.clips[0].combination != scene.clips[0].combination
    for (first, second), frame in zip(pairs, shown.frames, strict=True):
        assert (first.frames == stranger.identity.watched.frames).all() and second is frame


def test_layers_at_random_are_as_many_and_new_for_every_group() -> None:
    recipe = replace(PRESETS["paper-cogvideox-5b"], kv_layers=(1, 2, 42))
    drawn = [draw_layers(recipe, 42, random.Random(seed)) for seed in range(40)]
    assert all(len(set(each.kv_layers)) == 3 for each in drawn)
    assert all(list(each.kv_layers) == sorted(each.kv_layers) for each in drawn)
    numbers = {layer for each in drawn for layer in each.kv_layers}
    assert {min(numbers), max(numbers)} <= set(range(1, 43)) and len(numbers) > 25
    assert draw_layers(recipe, 42, random.Random(0)) == drawn[0] != drawn[1]
    assert replace(drawn[0], kv_layers=recipe.kv_layers) == recipe
    assert set(draw_layers(recipe, 3, random.Random(0)).kv_layers) == {1, 2, 3}


# Costs.


def test_the_papers_cache_is_as_large_as_the_paper_says() -> None:
    recipe = replace(PRESETS["paper-cogvideox-5b"], match_layers=(2,))
    features = [torch.empty(17550, 3072, dtype=torch.bfloat16, device="meta")]
    none: Any = None
    seen = Scouted(none, 5, [], none, True, features)
    alone = paper_cache_gb(replace(recipe, kv_layers=(1,)), seen)
    assert alone == pytest.approx(10.8, abs=0.1)  # a layer
    assert paper_cache_gb(recipe, seen) == pytest.approx(15 * alone, rel=0.02)
    wide = replace(seen, features=[torch.empty(17550, 3072, device="meta")])
    assert paper_cache_gb(recipe, wide) == 2 * paper_cache_gb(recipe, seen)


def test_a_meter_sees_the_peak_of_what_is_inside() -> None:
    with Meter() as before:
        pass
    with Meter() as full:
        torch.ones(100_000_000 // 4)  # gone at once
    assert full.cpu_gb - before.cpu_gb > 0.05 and full.gpu_gb >= 0
    assert full.seconds > 0


# Plans.


def subject(recipe: Recipe, layers: int = 42, steps: int = 50, ranking: bool = True) -> Subject:
    order = tuple(range(layers, 0, -1))
    ranks = Ranking(order, order[::-1], chosen=15) if ranking else None
    return Subject(recipe, layers, trailing_timesteps(steps), trailing_timesteps(50), ranks)


def recipes(plan: str, about: Subject) -> dict[str, Recipe]:
    """Of the runs that are the method, by name."""
    runs = PLANS[plan].runs(about)
    assert len({run.name for run in runs}) == len(runs)
    assert {run.against for run in runs} <= {run.name for run in runs} | {"vanilla_shared"}
    return {run.name: run.make.recipe for run in runs if isinstance(run.make, Method)}


PAPER = PRESETS["paper-cogvideox-5b"]


def test_the_grid_of_the_papers_own_model_is_table_4() -> None:
    found = recipes("grid", subject(PAPER))
    assert found.pop("ours_shared") == PAPER and len(found) == 12
    for name, recipe in found.items():
        tau, size = name.removeprefix("tau=").split(" ")
        assert recipe.tau_mask == recipe.tau_match == int(tau)
        count = {"small": 10, "paper": 15, "large": 20}[size]
        assert recipe.kv_layers == tuple(range(42 - count + 1, 43))  # the most vital ones, in their order
        assert recipe.mask_layers == PAPER.mask_layers


def test_taus_of_the_grid_are_noise_levels() -> None:
    short = replace(PAPER.at(trailing_timesteps(20)), mask_level=899.0)
    found = recipes("grid", subject(short, steps=20))
    steps = {name.split()[0]: recipe.tau_mask for name, recipe in found.items() if name != "ours_shared"}
    assert steps == {"tau=3": 1, "tau=5": 2, "tau=10": 4, "tau=15": 6}
    noisier = flow_schedule(20, shift=5.0).timesteps  # spends more steps on noisy latents
    about = replace(subject(short), timesteps=noisier)
    found = recipes("grid", about)
    for tau in (3, 5, 10, 15):
        step, level = found[f"tau={tau} paper"].tau_match, trailing_timesteps(50)[tau]
        assert abs(noisier[step] - level) == min(abs(each - level) for each in noisier)
    assert found["tau=10 paper"].tau_mask == 11  # by the ratio of steps it would be 4


def test_the_layers_of_table_2_are_equally_many() -> None:
    found = recipes("layers", subject(PAPER))
    assert found["by_quality"].kv_layers == tuple(range(28, 43))
    assert found["by_likeness"].kv_layers == tuple(range(1, 16))
    assert found["all"].kv_layers == tuple(range(1, 43))
    assert found["ours_shared"] == PAPER
    assert [run.name for run in PLANS["layers"].runs(subject(PAPER))][-1] == "random"


def test_a_recipe_that_lends_from_all_layers_is_not_asked_twice() -> None:
    recipe = replace(PAPER, kv_layers=tuple(range(1, 43)))
    found = recipes("layers", subject(recipe))
    assert found["all"] == recipe and "ours_shared" not in found


@pytest.mark.parametrize("base", [PAPER, replace(PAPER, normalize=True, refresh=True, shared_noise=False)])
def test_an_option_changes_one_thing(base: Recipe) -> None:
    about = subject(base, ranking=False)
    own = "ours_shared" if base.shared_noise else "ours_own"
    found = recipes("options", about)
    assert found.pop(own) == found.pop(f"noise={'own' if base.shared_noise else 'shared'}") == base
    for name, recipe in found.items():
        field, _, value = name.partition("=")
        changed = [
            each.name for each in fields(Recipe) if getattr(recipe, each.name) != getattr(base, each.name)
        ]
        assert changed == [field] and str(getattr(recipe, field)) == value
    changed = {name.partition("=")[0] for name in found}
    assert changed == {*OPTIONS, "kv_layers", "inject_steps", "bg_inject_steps"}
    runs = {run.name: run for run in PLANS["options"].runs(about)}
    assert all(runs[name].against == own for name in found)
    starts = {run.make.start for run in runs.values() if isinstance(run.make, Method) and run.name in found}
    assert starts == {own.removeprefix("ours_")}


@pytest.mark.parametrize("known", [None, 0.5])
def test_an_option_that_changes_nothing_is_not_asked(known: float | None) -> None:
    asked = recipes("options", subject(replace(PAPER, strength=0.5, bg_strength=known), ranking=False))
    assert {name for name in asked if name.startswith("bg_strength")} == {"bg_strength=0.25"}
    early = replace(PAPER, steps=20, tau_mask=2, tau_match=2, inject_steps=(0, 12))
    asked = recipes("options", subject(early, ranking=False))
    others = {"None", "(0, 6)", "(7, 19)"}
    assert {name for name in asked if "inject_steps" in name} == {
        *(f"inject_steps={window}" for window in others),
        *(f"bg_inject_steps={window}" for window in {*others, "(0, 19)"} - {"None"}),
    }
    backwards = replace(PAPER, kv_layers=tuple(range(42, 0, -1)))
    asked = recipes("options", subject(backwards, ranking=False))
    assert f"kv_layers={backwards.kv_layers[::-1]}" not in asked
    wan = replace(PAPER, mask_kind="cross", token_kind="self")
    asked = recipes("options", subject(wan, ranking=False))
    assert not any(name.startswith("mask_softmax") for name in asked)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20, 50])
def test_windows_of_injection_fit_the_schedule(steps: int) -> None:
    every, *found = windows(steps)
    assert every is None and len(set(found)) == len(found) and found
    assert all(0 <= first <= last < steps for first, last in found)
    assert windows(20) == [None, (0, 6), (0, 12), (7, 19), (0, 19)]


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 42])
def test_depths_are_layers_of_the_model(layers: int) -> None:
    every, *found = depths(layers)
    assert every == tuple(range(1, layers + 1)) and every not in found and len(set(found)) == len(found)
    assert all(part and set(part) < set(every) for part in found)
    assert depths(8)[1:] == [(3, 4, 5, 6, 7, 8), (5, 6, 7, 8), (1, 2, 3, 4, 5, 6), (1, 2, 3, 4)]


def test_the_controls_take_one_part_away_each() -> None:
    found = recipes("controls", subject(PAPER, ranking=False))
    assert found["only_background"] == replace(PAPER, mode="bg")
    assert found["only_foreground"] == replace(PAPER, mode="fg")
    assert found["all_layers"] == replace(PAPER, kv_layers=tuple(range(1, 43)))
    assert {found[name] for name in ("ours_shared", "ours_own", "random_match", "truth")} == {PAPER}
    names = {run.name for run in PLANS["controls"].runs(subject(PAPER))}
    assert names > {"vanilla_own", "vanilla_shared", "oracle", "copy", "random_layers", "shuffled"}
    assert (PLANS["controls"].groups, PLANS["controls"].prompts) == (100, 5)


def test_a_ranking_begins_with_the_layers_that_are_missed_most(tmp_path: Path) -> None:
    file = tmp_path / "figures" / "vital.json"
    file.parent.mkdir()
    scores = {
        "quality": {"without": [0.5, 0.1, None], "chosen": [2]},
        "likeness": {"without": [0.3, 0.2, 0.1]},
    }
    file.write_text(json.dumps(scores))
    assert Ranking.read(tmp_path, 3) == Ranking((2, 1, 3), (3, 2, 1), chosen=1)
    with pytest.raises(UsageError, match="ranks 3 layers, but the model has 8"):
        Ranking.read(tmp_path, 8)
    file.write_text("{}")
    with pytest.raises(UsageError, match="holds no ranking"):
        Ranking.read(tmp_path, 3)
