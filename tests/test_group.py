"""Groups of videos: three ways that give the same bits, and what they cost: pytest tests/test_group.py"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import randomised
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bachvid.method.attends import Inject, Record
from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.group import Group, vanilla
from bachvid.method.identity import Trajectory
from bachvid.method.look import Look
from bachvid.method.mask import Spans
from bachvid.method.match import Places, match
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, believable, features_of, look_at, scout
from bachvid.method.spans import Parts
from bachvid.method.together import Pass, forward
from bachvid.models.cogvideox import CogVideoX, CogVideoXConfig
from bachvid.models.wan import Wan, WanConfig
from bachvid.sampling.flow_schedule import flow_schedule
from bachvid.sampling.flow_step import dpm_flow_sde_2m, flow_euler, unipc
from bachvid.sampling.loop import denoise
from bachvid.sampling.sampler import Sampler
from bachvid.sampling.schedule import cogvideox_schedule
from bachvid.sampling.step import Step, ddim, dpm_sde_2m

CONFIG = CogVideoXConfig(
    layers=4, heads=2, head_width=16, channels=4, patch=2, patch_frames=None, text_width=12, text_length=7,
    time_width=8, rotary=True, sample_height=6, sample_width=10, sample_frames=9, temporal_compression=4,
    spatial_scale=1.875, temporal_scale=1.0,
)  # fmt: skip
WAN_CONFIG = WanConfig(
    layers=4, heads=2, head_width=16, inner=32, channels=4, patch=(1, 2, 2), text_width=12, time_features=8,
    text_norm=True, longest=32,
)  # fmt: skip
TOKENS = 3 * 3 * 5
RECIPE = Recipe(4, "joint", (1, 2), 1, "joint", (2, 3), 1, (1, 3))
SPANS = Spans(torch.tensor([0, 1, 2]), torch.tensor([3, 4]))
SOLVERS: dict[str, Step] = {"ddim": ddim, "dpm": dpm_sde_2m}
FLOW_SOLVERS: dict[str, Step] = {"unipc": unipc, "euler": flow_euler, "sde": dpm_flow_sde_2m}


@cache
def model(kind: str, dtype: torch.dtype) -> CogVideoX | Wan:
    """A random model whose attention is sharp, so that its masks are neither empty nor full."""
    built = Wan(WAN_CONFIG) if kind == "wan" else CogVideoX(replace(CONFIG, rotary=kind == "rotary"))
    made = randomised(built).requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight")):
            parameter.mul_(3)
    return made.to(dtype)


def text(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.randn(1, 7, 12, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prompts(*seeds: int, dtype: torch.dtype = torch.float32) -> list[Prompt]:
    return [Prompt(text(seed, dtype), SPANS) for seed in seeds]


PROMPTS = prompts(1, 4, 9)  # with masks that can be believed, of the random models above
WAN_PROMPTS = prompts(6, 5, 10)


def prompts_for(kind: str) -> list[Prompt]:
    return WAN_PROMPTS if kind == "wan" else PROMPTS


def denoiser(
    kind: str = "rotary",
    solver: str = "dpm",
    steps: int = 4,
    scale: float = 4.0,
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """A fresh one for every run: nothing may be owed to an earlier run."""
    if kind == "wan":
        sampler, shape = Sampler(flow_schedule(steps, shift=3.0), FLOW_SOLVERS[solver]), (1, 4, 3, 6, 10)
    else:
        sampler, shape = Sampler(cogvideox_schedule(steps), SOLVERS[solver]), (1, 3, 4, 6, 10)
    return Denoiser(model(kind, dtype), sampler, text(99, dtype), shape, scale)


def fitting(recipe: Recipe, of: Denoiser) -> Recipe:
    """The recipe at the sites that the model has."""
    if isinstance(of.model, CogVideoX):
        return recipe
    return replace(recipe, mask_kind="cross", token_kind="self")


def made(
    of: Denoiser, recipe: Recipe, given: Sequence[Prompt] = PROMPTS[:2], seeds: Any = None, **options: Any
) -> Group:
    """A group that has run."""
    group = Group(of, fitting(recipe, of), given, seeds or [1] * len(given), **options)
    for _ in group.run():
        pass
    return group


def latents(group: Group) -> list[Tensor]:
    return [take.latents for take in group.takes]


def alone(of: Denoiser, given: Sequence[Prompt] = PROMPTS[:2], seeds: Any = None) -> list[Tensor]:
    """The same videos without the method."""
    last = {p.video: take.latents for p, take in vanilla(of, given, seeds or [1] * len(given))}
    return list(last.values())


def equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@cache
def usual(kind: str = "rotary", solver: str = "dpm") -> Group:
    """An identity and two frame videos, in lockstep."""
    return made(denoiser(kind, solver), RECIPE, prompts_for(kind))


@cache
def bare(kind: str = "rotary", solver: str = "dpm") -> list[Tensor]:
    """The same three videos without the method."""
    return alone(denoiser(kind, solver), prompts_for(kind))


KINDS = [(kind, solver) for kind in ("rotary", "added") for solver in SOLVERS]
KINDS += [("wan", solver) for solver in FLOW_SOLVERS]


# Three ways, one video


@pytest.mark.parametrize(("kind", "solver"), KINDS)
def test_lockstep_cache_and_replay_give_the_same_bits(kind: str, solver: str) -> None:
    group = usual(kind, solver)
    assert all(
        frame.note is None and len(frame.places.matched) and len(frame.places.background)
        for frame in group.frames
    )
    expected, plain = latents(group), bare(kind, solver)
    cached = made(denoiser(kind, solver), RECIPE, prompts_for(kind), keep_cache=True)
    replayed = made(denoiser(kind, solver), RECIPE, prompts_for(kind)[1:], identity=group.identity)

    assert equal(latents(cached), expected)
    assert equal(latents(replayed), expected[1:])
    assert torch.equal(expected[0], plain[0]), "the identity is the vanilla video"
    for frame, vanilla_frame in zip(expected[1:], plain[1:], strict=True):
        assert (frame - vanilla_frame).abs().max() > 0.05, "the injection must be felt"
    assert equal(cached.identity.trajectory, group.identity.trajectory)
    assert len(group.identity.trajectory) == 5


VARIANTS: dict[str, dict[str, Any]] = {
    "foreground": {"mode": "fg"},
    "background": {"mode": "bg"},
    "some steps": {"inject_steps": (1, 2)},
    "the place to the end": {"inject_steps": (0, 1), "bg_inject_steps": (1, 3)},
    "mask first": {"tau_mask": 0, "tau_match": 2},
    "matches first": {"tau_mask": 2, "tau_match": 0},
    "as printed": {"normalize": False},
    "in frames": {"window": "frame", "match_layers": (3, 4)},
    "similar only": {"min_similarity": 0.995},
    "inside the identity": {"require_identity_foreground": True},
    "smooth": {"smooth": True},
    "margin": {"margin": 1},
    "half": {"strength": 0.5},
    "half of the background": {"bg_strength": 0.5},
    "mask over text": {"mask_softmax": "text"},
    "mask by Otsu": {"mask_split": "otsu"},
    "refresh": {"refresh": True},
    "refresh, mask first": {"refresh": True, "tau_mask": 0},
    "every layer": {"kv_layers": (1, 2, 3, 4), "mask_layers": (4,), "match_layers": (1,)},
    "both branches": {"branches": "both"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_ways_agree_for_every_option(name: str) -> None:
    recipe = replace(RECIPE, **VARIANTS[name])
    group = made(denoiser(), recipe)
    expected = latents(group)
    replayed = made(denoiser(), recipe, PROMPTS[1:2], identity=group.identity)
    assert equal(latents(replayed), expected[1:])
    if name == "both branches":
        with pytest.raises(ValueError, match="the cache holds the conditional branch only"):
            Group(denoiser(), recipe, PROMPTS, [1, 1, 1], keep_cache=True)
    else:
        assert equal(latents(made(denoiser(), recipe, keep_cache=True)), expected)
    assert torch.equal(expected[0], latents(usual())[0])
    assert not torch.equal(expected[1], latents(usual())[1]), "the option must be felt"


@pytest.mark.parametrize("way", ["lockstep", "cache"])
def test_videos_join_a_finished_world_from_a_file(way: str, tmp_path: Path) -> None:
    group, path = usual(), tmp_path / "trajectory.safetensors"
    parts, world = Parts("a", "b", "c"), {"model": "tiny", "scale": 4.0}
    Trajectory.of(group.identity, parts, group.recipe, world).save(path)
    read = Trajectory.load(path)
    read.check(dict(world))
    with pytest.raises(ValueError, match=r"made with model tiny, and this run has None"):
        read.check({"scale": 4.0})
    with pytest.raises(ValueError, match=r"made with scale 4.0, and this run has 5.0"):
        read.check({**world, "scale": 5.0})
    assert (read.parts, read.recipe, read.seed) == (parts, group.recipe, 1)

    identity = read.replay(denoiser(), PROMPTS[0])
    joined = made(denoiser(), RECIPE, PROMPTS[1:], identity=identity, keep_cache=way == "cache")
    assert equal(latents(joined), latents(group)[1:])
    assert len(identity.trajectory) == 5, "a finished identity is not walked on"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        Trajectory.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"believed": None}, "is damaged"),
        ({"seed": -1}, "is damaged"),
        ({"parts": {"background": "a"}}, "is damaged"),
        ({"world": {"steps": 7}}, "is damaged .*5 latents, where 7 steps leave 8"),
        ({"world": None}, "is damaged"),
        ({"recipe": {}}, "is damaged .*incomplete recipe"),
        ({"format": "other"}, "is no identity file"),
    ],
)
def test_a_damaged_identity_is_told(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    group, path = usual(), tmp_path / "trajectory.safetensors"
    Trajectory.of(group.identity, Parts("a", "b", "c"), group.recipe, {"steps": 4}).save(path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()["bachvid"])
    save_file(tensors, path, {"bachvid": json.dumps({**known, **change})})
    with pytest.raises(ValueError, match=sentence):
        Trajectory.load(path)
    for broken in ("", "[]", "{", "[" * 100_000):
        save_file(tensors, path, {"bachvid": broken})
        with pytest.raises(ValueError, match="is no identity file"):
            Trajectory.load(path)
    save_file({**tensors, "mask": tensors["mask"][:-1]}, path, {"bachvid": json.dumps(known)})
    with pytest.raises(ValueError, match="of another size than it says"):
        Trajectory.load(path).replay(denoiser(), PROMPTS[0])
    save_file({**tensors, "latents": tensors["latents"] * torch.nan}, path, {"bachvid": json.dumps(known)})
    with pytest.raises(ValueError, match=r"is damaged .*no numbers"):
        Trajectory.load(path)


def test_the_cache_serves_a_world_that_this_run_has_finished() -> None:
    group = made(denoiser(), RECIPE)
    identity, before = group.identity, group.identity.take.latents
    joined = made(denoiser(), RECIPE, PROMPTS[1:2], identity=identity, keep_cache=True)
    assert equal(latents(joined), latents(group)[1:])
    assert torch.equal(identity.take.latents, before)


def test_half_precision_agrees_to_the_bit_too() -> None:
    half = torch.bfloat16
    given = prompts(1, 4, dtype=half)
    group = made(denoiser(dtype=half), RECIPE, given)
    assert latents(group)[0].dtype == half
    assert equal(latents(made(denoiser(dtype=half), RECIPE, given, keep_cache=True)), latents(group))
    replayed = made(denoiser(dtype=half), RECIPE, given[1:], identity=group.identity)
    assert equal(latents(replayed), latents(group)[1:])
    assert torch.equal(latents(group)[0], alone(denoiser(dtype=half), given)[0])


# Against Section 3.5 done densely


DENSE: dict[str, dict[str, Any]] = {
    "default": {},
    "foreground": {"mode": "fg"},
    "background, as printed": {"mode": "bg", "normalize": False},
    "both branches": {"branches": "both"},
    "both branches, some steps": {"branches": "both", "inject_steps": (1, 2)},
    "mask first": {"tau_mask": 0, "tau_match": 2},
    "matches first": {"tau_mask": 2, "tau_match": 0},
    "the place later and longer": {"inject_steps": (0, 1), "bg_inject_steps": (1, 2)},
}


@pytest.mark.parametrize(
    ("kind", "solver", "name"),
    [
        *[("rotary", "dpm", name) for name in DENSE],
        *[("wan", "unipc", name) for name in DENSE],
        ("rotary", "ddim", "default"),
        ("added", "dpm", "default"),
        ("wan", "euler", "default"),
    ],
)
def test_a_group_is_that_of_dense_attention(kind: str, solver: str, name: str) -> None:
    recipe = replace(RECIPE, **DENSE[name])
    given = prompts_for(kind)[: 3 if name == "default" else 2]
    group = made(denoiser(kind, solver), recipe, given)
    expected = oracles.group(denoiser(kind, solver), group.recipe, given, [1] * len(given))
    masks = [group.identity.mask, *(frame.mask for frame in group.frames)]
    assert equal(masks, expected.masks)
    assert equal([frame.matches.partner for frame in group.frames], expected.partners)
    assert not any(frame.note for frame in group.frames)
    for got, dense in zip(latents(group), expected.latents, strict=True):
        assert (got - dense).abs().max() < 1e-4 * dense.abs().max()


# What stays as it is


@pytest.mark.parametrize("off", [{"mode": "off"}, {"inject_steps": (4, 9)}], ids=["mode off", "no step"])
@pytest.mark.parametrize(("kind", "solver"), KINDS)
def test_without_injection_videos_are_vanilla(kind: str, solver: str, off: dict) -> None:
    group = made(denoiser(kind, solver), replace(RECIPE, **off), prompts_for(kind)[:2])
    assert equal(latents(group), bare(kind, solver)[:2])


def test_a_vanilla_run_does_not_depend_on_its_company() -> None:
    assert torch.equal(bare()[2], alone(denoiser(), PROMPTS[2:])[0])


def test_steps_before_the_first_injection_are_vanilla() -> None:
    plain = [take.latents for _, take in vanilla(denoiser(), PROMPTS[1:2], [1])]
    seen = {}
    group = Group(denoiser(), replace(RECIPE, inject_steps=(2, 3)), PROMPTS[:2], [1, 1])
    for progress in group.run():
        if progress.phase == "main run":
            seen[progress.step] = torch.equal(group.takes[1].latents, plain[progress.step])
    assert seen == {0: True, 1: True, 2: False, 3: False}


def test_more_frame_videos_leave_the_others_untouched() -> None:
    one, two, three = latents(usual())
    assert equal(latents(made(denoiser(), RECIPE, PROMPTS[:2])), [one, two])
    assert equal(latents(made(denoiser(), RECIPE, [PROMPTS[0], PROMPTS[2], PROMPTS[1]])), [one, three, two])


def test_noise_of_their_own() -> None:
    """With a seed for each video, every video is still the same in every way."""
    group = made(denoiser(), RECIPE, seeds=[1, 2])
    assert equal(latents(made(denoiser(), RECIPE, seeds=[1, 2], keep_cache=True)), latents(group))
    replayed = made(denoiser(), RECIPE, PROMPTS[1:2], seeds=[2], identity=group.identity)
    assert equal(latents(replayed), latents(group)[1:])
    off = made(denoiser(), replace(RECIPE, mode="off"), seeds=[1, 2])
    assert equal(latents(off), alone(denoiser(), seeds=[1, 2]))


@pytest.mark.parametrize(("kind", "solver"), [("rotary", "dpm"), ("added", "dpm"), ("wan", "unipc")])
def test_a_video_of_the_same_prompt_and_noise_is_its_own_match(kind: str, solver: str) -> None:
    group = made(denoiser(kind, solver), RECIPE, [prompts_for(kind)[0]] * 2)
    frame = group.frames[0]
    assert torch.equal(frame.mask, group.identity.mask)
    assert torch.equal(frame.matches.partner, torch.arange(TOKENS))
    assert torch.equal(frame.places.matched, frame.places.partners)
    assert torch.equal(frame.places.background, frame.places.rest)


# The pre-run, and masks that cannot be believed


def seen_at(step: int, given: Prompt) -> Look:
    """What a video shows at a step of its own, vanilla way."""
    of = denoiser()
    before = [of.start(given, 1).latents, *(take.latents for _, take in vanilla(denoiser(), [given], [1]))]
    return look_at(of, RECIPE, given, before[step], step)


def scouted(recipe: Recipe, given: Prompt) -> Scouted:
    """What the pre-run of a video sees."""
    steps = scout(denoiser(), recipe, given, 1)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def check_scouted(seen: Scouted, given: Prompt, tau: int, mask_at: int, features_at: int) -> None:
    assert (seen.tau, len(seen.trajectory)) == (tau, tau + 1)
    assert torch.equal(seen.mask, seen_at(mask_at, given).mask())
    assert equal(seen.features, seen_at(features_at, given).features())


@pytest.mark.parametrize(("tau_mask", "tau_match"), [(1, 1), (0, 2), (2, 0), (0, 0)])
def test_mask_and_features_are_read_at_their_steps(tau_mask: int, tau_match: int) -> None:
    recipe = replace(RECIPE, tau_mask=tau_mask, tau_match=tau_match)
    seen = scouted(recipe, PROMPTS[0])
    check_scouted(seen, PROMPTS[0], max(tau_mask, tau_match), tau_mask, tau_match)
    found, seen.features = seen.features, None
    assert equal(features_of(denoiser(), recipe, seen), found), "they can be let go and read again"


@cache
def share(step: int, given: Prompt) -> float:
    return seen_at(step, given).mask().float().mean().item()


def test_a_mask_is_read_again_a_step_later() -> None:
    """Until it can be believed. Features are those of tau_match, for those of two steps would not match."""
    given = prompts(18)[0]
    low, high = share(1, given), share(2, given)
    assert low + 0.1 < high, "this prompt's mask grows from step 1 to step 2"
    recipe = replace(RECIPE, tau_mask=1, tau_match=1, least_share=(low + high) / 2)
    check_scouted(scouted(recipe, given), given, tau=2, mask_at=2, features_at=1)
    group = made(denoiser(), recipe, [given, PROMPTS[0]])
    assert group.identity.believed
    assert torch.equal(latents(group)[0], alone(denoiser(), [given])[0])
    replayed = made(denoiser(), recipe, [PROMPTS[0]], identity=group.identity)
    assert equal(latents(replayed), latents(group)[1:])


@pytest.mark.parametrize("limits", [{"least_share": 0.99}, {"most_share": 0.01}], ids=["empty", "full"])
@pytest.mark.parametrize(
    ("tau_mask", "tau_match", "end"), [(1, 1, 2), (2, 2, 3), (3, 3, 3), (1, 3, 3), (0, 0, 0)]
)
def test_no_mask_ever_fails_a_run(tau_mask: int, tau_match: int, end: int, limits: dict) -> None:
    """Patience ends at twice tau or with the schedule; then nothing is borrowed."""
    recipe = replace(RECIPE, tau_mask=tau_mask, tau_match=tau_match, **limits)
    group = made(denoiser(), recipe)
    assert group.identity.tau == end
    assert not group.identity.believed
    assert [frame.note for frame in group.frames] == ["the identity's mask is not usable: it borrows nothing"]
    assert equal(latents(group), bare()[:2])


@pytest.mark.parametrize("mode", ["both", "bg", "fg"])
@pytest.mark.parametrize("usable", ["identity", "frame"])
def test_with_one_mask_the_background_is_borrowed_or_nothing(usable: str, mode: Any) -> None:
    """Nothing without the identity's: where its character stands, it would be borrowed as a place."""
    given = sorted(PROMPTS[:2], key=lambda some: share(0, some))  # the second has more foreground
    limit = (share(0, given[0]) + share(0, given[1])) / 2
    assert share(0, given[0]) + 0.05 < share(0, given[1])
    if usable == "identity":
        given.reverse()
    recipe = replace(RECIPE, mode=mode, tau_mask=0, tau_match=0, least_share=limit)
    group = made(denoiser(), recipe, given)
    frame, identity = group.frames[0], group.identity
    assert (identity.believed, frame.note is None) == (usable == "identity", False)
    why = r"its mask covers \d+\.\d%" if usable == "identity" else "the identity's mask is not usable"
    borrows = usable == "identity" and mode != "fg"
    what = "only the background, by the identity's mask" if borrows else "nothing"
    assert re.fullmatch(f"{why}: it borrows {what}", frame.note)
    assert len(frame.places.matched) == 0
    expected = ~identity.mask if borrows else torch.zeros(TOKENS).bool()
    assert torch.equal(frame.places.background, expected.nonzero()[:, 0])
    assert torch.equal(latents(group)[1], alone(denoiser(), given)[1]) == (not borrows)
    replayed = made(denoiser(), recipe, given[1:], identity=identity)
    assert equal(latents(replayed), latents(group)[1:])


# Refresh


def test_refresh_reads_masks_and_matches_where_it_injects() -> None:
    """Every step up to tau_mask renews the mask, if the new one can be believed, and the step tau_match the
    matches; both are read in the pass that injects."""
    wide = replace(RECIPE, least_share=0.0, most_share=1.0)  # every mask is believed
    recipe = replace(wide, refresh=True, tau_mask=2, tau_match=1, mask_layers=(4,), kv_layers=(1, 2))
    plain = made(denoiser(), replace(recipe, refresh=False))
    group = Group(denoiser(), recipe, PROMPTS[:2], [1, 1])
    where, before = plain.frames[0].places, denoiser().start(PROMPTS[1], 1).latents
    masks = [plain.frames[0].mask]
    for progress in group.run():
        if progress.phase != "main run":
            continue
        frame = group.frames[0]
        if progress.step <= 2:
            look = injected_look(group, where, before, progress.step)
            masks.append(look.mask() if believable(look.mask(), recipe) else masks[-1])
            assert torch.equal(frame.mask, masks[-1])
            if progress.step == 1:
                there = features_of(group.denoiser, recipe, group.identity)
                again = match(look.features(), there, frame.grid, recipe)
                assert torch.equal(frame.matches.partner, again.partner)
                assert not torch.equal(again.partner, plain.frames[0].matches.partner)
        else:
            assert torch.equal(frame.mask, masks[-1])
        where, before = frame.places, frame.take.latents
    assert not torch.equal(masks[0], masks[-1])
    assert frame.note is None


def test_both_branches_of_a_step_borrow_at_the_same_places() -> None:
    """What a refresh has seen in the conditional branch counts from the next step on."""
    wide = replace(RECIPE, least_share=0.0, most_share=1.0)
    recipe = replace(wide, refresh=True, tau_mask=2, mask_layers=(4,), kv_layers=(1, 2), branches="both")
    group = Group(denoiser(solver="ddim"), recipe, PROMPTS[:2], [1, 1])
    main_run = (progress.step for progress in group.run() if progress.phase == "main run")
    next(main_run)
    frame, moved = group.frames[0], 0
    where, before = frame.places, frame.take.latents
    for step in main_run:
        expected = after_one_step(group, where, before, step)
        assert torch.allclose(frame.take.latents, expected, atol=1e-5)
        moved += not torch.equal(where.foreground, frame.places.foreground)
        where, before = frame.places, frame.take.latents
    assert moved, "the places of some step must differ from those of the next"


def after_one_step(group: Group, where: Places, before: Tensor, step: int) -> Tensor:
    """The latents behind a step in which both branches borrow at these places."""
    of, sites, trajectory = group.denoiser, group.recipe.kv_sites, group.identity.trajectory

    def predict(takes: Sequence[Take], step: int) -> list[Tensor]:
        branches = []
        for texts in ([prompt.text for prompt in PROMPTS[:2]], [of.negative, of.negative]):
            record = Record()
            first = Pass(trajectory[step], texts[0], dict.fromkeys(sites, record))
            borrow = dict.fromkeys(sites, Inject(record.lend, where))
            branches.append(forward(of.model, of.timestep(step), [first, Pass(before, texts[1], borrow)])[1:])
        return of.guide(takes, step, *branches)

    take = Take(before, torch.Generator(), prompt=PROMPTS[1], seed=1)
    for _ in denoise(predict, [take], of.sampler, [step]):
        return take.latents
    raise AssertionError


def injected_look(group: Group, where: Places, before: Tensor, step: int) -> Look:
    """What the frame video shows while it borrows at these places."""
    record, of = Record(), group.denoiser
    sites = group.recipe.kv_sites
    first = Pass(group.identity.trajectory[step], PROMPTS[0].text, dict.fromkeys(sites, record))
    borrow = dict.fromkeys(sites, Inject(record.lend, where))
    look = Look(group.recipe, SPANS, group.frames[0].grid, around=borrow)
    forward(of.model, of.timestep(step), [first, Pass(before, PROMPTS[1].text, look.attend_at)])
    return look


# Ends of the ranges


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_schedule_of_one_step(solver: str) -> None:
    group = made(denoiser(solver=solver, steps=1), RECIPE)
    assert (group.recipe.steps, group.recipe.tau_mask, group.recipe.tau_match) == (1, 0, 0)
    cached = made(denoiser(solver=solver, steps=1), RECIPE, keep_cache=True)
    replayed = made(denoiser(solver=solver, steps=1), RECIPE, PROMPTS[1:2], identity=group.identity)
    assert equal(latents(cached), latents(group))
    assert equal(latents(replayed), latents(group)[1:])
    plain = alone(denoiser(solver=solver, steps=1))
    assert torch.equal(latents(group)[0], plain[0])
    assert not torch.equal(latents(group)[1], plain[1])


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_without_guidance_there_is_one_branch(scale: float) -> None:
    of = replace(denoiser(scale=scale), negative=torch.full((1, 7, 12), torch.nan))
    group = made(of, replace(RECIPE, branches="both"))
    assert torch.equal(latents(group)[0], alone(denoiser(scale=scale))[0])
    expected = oracles.group(denoiser(scale=scale), RECIPE, PROMPTS[:2], [1, 1]).latents
    for got, dense in zip(latents(group), expected, strict=True):
        assert (got - dense).abs().max() < 1e-4 * dense.abs().max()


def test_a_prediction_that_is_not_finite_stops_the_run() -> None:
    broken = Prompt(torch.full((1, 7, 12), torch.inf), SPANS)
    with pytest.raises(FloatingPointError, match="the prediction of step 0 is not finite"):
        made(denoiser(), RECIPE, [broken])


# What it costs


def blocks_passed(of: Denoiser, *args: Any, **options: Any) -> int:
    """How many blocks the rows of a group pass in all."""
    calls: list[None] = []
    handles = [block.register_forward_hook(lambda *_: calls.append(None)) for block in of.model.blocks]
    made(of, *args, **options)
    for handle in handles:
        handle.remove()
    return len(calls)


LAYERS, STEPS, TAU, LOOK, VITAL = 4, 4, 1, 3, 2  # look and vital: the last layer needed for each
CHEAP = replace(RECIPE, kv_layers=(1, 2))


@pytest.mark.parametrize("videos", [1, 2])
def test_a_group_passes_no_block_in_vain(videos: int) -> None:
    """One forward after the other, with the exact trims: the identity does not restart, its known steps are
    passed to the last vital layer by the conditional branch alone, the unconditional branch of step 0 is
    evaluated once, and the last step of a pre-run goes no further than the last mask or match layer."""
    given = PROMPTS[: 1 + videos]
    pre_run = 2 * TAU * LAYERS + LOOK
    identity = pre_run + TAU * VITAL + 2 * (STEPS - TAU) * LAYERS
    frame = pre_run + 2 * STEPS * LAYERS
    shared = 2 * LAYERS  # step 0 without a condition, in a frame video's pre-run and in its main run
    assert blocks_passed(denoiser(), CHEAP, given) == identity + videos * (frame - shared)

    own = list(range(1 + videos))  # noise of their own: shared between pre-run and main run only
    assert blocks_passed(denoiser(), CHEAP, given, own) == identity + videos * (frame - LAYERS)
    assert blocks_passed(denoiser(), replace(CHEAP, refresh=True), given) == identity + videos * (
        frame - shared
    )

    finished = made(denoiser(), CHEAP, given[:1]).identity
    replay = LAYERS + LOOK + STEPS * VITAL + videos * (frame - shared)  # step 0 and its features again, once
    assert blocks_passed(denoiser(), CHEAP, given[1:], identity=finished) == replay


def test_without_guidance_a_group_passes_half_the_blocks() -> None:
    pre_run = TAU * LAYERS + LOOK
    identity = pre_run + TAU * VITAL + (STEPS - TAU) * LAYERS
    expected = identity + pre_run + STEPS * LAYERS
    assert blocks_passed(denoiser(scale=1.0), CHEAP) == expected
    assert blocks_passed(denoiser(scale=1.0), replace(CHEAP, branches="both")) == expected


def test_both_branches_cost_the_identity_its_known_steps_again() -> None:
    one = blocks_passed(denoiser(), CHEAP)
    assert blocks_passed(denoiser(), replace(CHEAP, branches="both")) == one + TAU * VITAL + LAYERS


@pytest.mark.parametrize("way", ["lockstep", "cache", "replay"])
def test_progress_is_as_long_as_announced(way: str) -> None:
    identity = usual().identity if way == "replay" else None
    given = PROMPTS[1:] if identity else PROMPTS
    group = Group(denoiser(), RECIPE, given, [1] * len(given), identity, keep_cache=way == "cache")
    assert len(list(group.run())) == group.total_steps


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def test_nothing_as_large_as_all_pairs_of_tokens_ever_exists() -> None:
    config = replace(CONFIG, layers=2, heads=1, sample_height=24, sample_width=40)
    big = randomised(CogVideoX(config)).requires_grad_(False)
    of = replace(denoiser(steps=2), model=big, shape=(1, 5, 4, 24, 40))
    tokens = 5 * 12 * 20
    recipe = replace(RECIPE, steps=2, tau_mask=1, tau_match=1, match_layers=(1, 2), kv_layers=(1, 2))
    recipe = replace(recipe, least_share=0.0, most_share=1.0)
    with Largest() as largest:
        group = made(of, recipe)
    assert len(group.frames[0].mask) == tokens
    assert len(group.frames[0].places.matched) + len(group.frames[0].places.background) > 0
    assert 1024 * tokens <= largest.elements < tokens**2, "a block of similarities is the largest"
