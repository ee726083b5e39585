"""`bachvid bench`: every way makes one video, costs add up, and what cannot be measured is said.

pytest tests/test_bench.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bachvid.__main__ import main
from bachvid.bench.clock import Took, in_turns, rounds
from bachvid.bench.measure import apart, cost_of
from bachvid.bench.subject import Subject, ellipse, known_model, shortened
from bachvid.method.recipe import PRESETS
from bachvid.models import cogvideox, wan
from bachvid.models.grid import Grid
from bachvid.models.wan import Wan

CPU = torch.device("cpu")


@pytest.mark.parametrize("model", ["tiny-cogvideox", "tiny-wan"])
def test_all_ways_make_the_same_video_and_diffusers_the_same_vanilla(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    flags = ["--steps", "3", "--layers", "4", "--device", "cpu", "--beside-diffusers", "--out", str(file)]
    assert main(["bench", model, *flags]) == 0
    found = json.loads(file.read_text())
    apart = found["differences"]
    assert apart["lockstep and replay"] == apart["lockstep and cache"] == 0
    assert apart["vanilla and diffusers"] < 1e-4
    assert {"lockstep", "replay", "cache", "look", "match", "diffusers"} < set(found["took"])
    assert all(0 < took["min_s"] <= took["median_s"] <= took["max_s"] for took in found["took"].values())
    assert (found["tokens"], found["dtype"], found["layers"]) == (480, "float32", 4)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*found["took"], "ratio", "vanilla and diffusers"))


@pytest.mark.parametrize("name", [*cogvideox.CHECKPOINTS, *wan.CHECKPOINTS])
def test_published_models_are_known_without_files(name: str) -> None:
    model = known_model(name)
    assert model.name == name
    size, frames = model.format.size, model.format.frames
    grid = model.outline().grid(torch.empty(model.latent_shape(size, frames), device="meta"))
    assert grid.tokens == {
        "cogvideox-2b": 17_550, "cogvideox-5b": 17_550, "cogvideox1.5-5b": 44_880,
        "wan2.1-t2v-1.3b": 32_760, "wan2.1-t2v-14b": 32_760,
    }[name]  # fmt: skip


def test_a_published_model_of_one_layer_keeps_its_widths_and_its_islands() -> None:
    short, recipe = shortened(known_model("wan2.1-t2v-1.3b"), PRESETS["paper-wan-14b"].scaled_to(30, 40), 1)
    assert recipe.mask_layers == recipe.match_layers == recipe.kv_layers == (1,)
    seldom = replace(recipe, inject_steps=(0, 1), bg_inject_steps=(2, 3))
    built = Subject.build(short, seldom, (64, 48), 5, 3, torch.bfloat16, CPU)
    assert [built.timed_recipe.mode_at(step) for step in range(3)] == ["both"] * 3
    model = built.denoiser.model
    assert isinstance(model, Wan)
    assert (model.config.layers, model.config.width, built.grid) == (1, 1536, Grid(2, 3, 4))
    kinds = {name: weight.dtype for name, weight in model.named_parameters()}
    assert kinds["blocks.0.modulation"] is kinds["time_embedding.0.weight"] is torch.float32
    assert kinds["blocks.0.ffn.0.weight"] is kinds["blocks.0.self_attn.norm_q.weight"] is torch.bfloat16
    assert all(weight.isfinite().all() and weight.device == CPU for weight in model.parameters())
    assert (model.blocks[0].self_attn.norm_q.weight == 1).all()


@pytest.mark.parametrize("share", [0.1, 0.28, 0.47])
def test_the_mask_is_one_ellipse_in_every_frame(share: float) -> None:
    mask = ellipse(Grid(3, 30, 45), share).view(3, 30, 45)
    assert mask.float().mean().item() == pytest.approx(share, abs=0.01)
    assert (mask == mask[0]).all()
    assert torch.equal(mask[0], mask[0].flip(0)) and torch.equal(mask[0], mask[0].flip(1))
    assert mask[0, 15, 22] and not mask[0, 0, 0]


def test_walks_take_turns_and_their_first_step_does_not_count() -> None:
    seen: list[str] = []

    def walk(name: str, steps: int) -> Iterator[None]:
        for _ in range(steps):
            seen.append(name)
            yield

    took = in_turns({"a": walk("a", 4), "b": walk("b", 3)}, CPU)
    assert "".join(seen) == "abababa"
    assert [len(took[name].seconds) for name in "ab"] == [3, 2]


def test_work_is_done_once_more_than_it_is_timed() -> None:
    seen: list[int] = []
    assert len(rounds(lambda: seen.append(0), 4, CPU).seconds) == 4
    assert len(seen) == 5


def test_a_groups_cost_is_that_of_its_parts() -> None:
    """Ten steps of 1 s; a frame video adds 1.25 s to one in lockstep; the identity goes along for 0.5 s."""
    seconds = {
        "vanilla, beside lockstep": 1.0, "lockstep": 2.25, "replay": 1.75, "look": 0.4, "match": 0.1,
    }  # fmt: skip
    took = {name: Took([each], 0.0) for name, each in seconds.items()}
    recipe = PRESETS["paper-cogvideox-5b"].at(range(10, 0, -1))
    assert (recipe.steps, recipe.tau_mask, recipe.tau_match) == (10, 1, 1)
    identity, frame = 10 + 0.4 + 0.5, 1 + 0.4 + 0.1 + 12.5
    for videos in (2, 5):
        found = cost_of(videos, took, recipe)
        assert found["vanilla_s"] == 10 * videos
        assert found["group_s"] == pytest.approx(identity + (videos - 1) * frame)
        assert found["ratio"] == pytest.approx(found["group_s"] / found["vanilla_s"])


def test_differences_are_told_in_shares_of_the_spread() -> None:
    video = torch.randn(1, 4, 100)
    assert apart(video, video.clone()) == 0
    assert apart(2 * video, 2 * video + 0.2) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["cogvideox-6b"], "cogvideox-6b"),
        (["tiny-wan", "--steps", "2"], "Use 3 or more"),
        (["tiny-wan", "--foreground", "1.5"], "no share of a frame"),
        (["tiny-wan", "--size", "97x64"], "Use 96x64"),
        (["tiny-cogvideox", "--frames", "0"], "--frames 0 does not fit"),
        (["tiny-wan", "--layers", "9"], "Use 1 to 8"),
        (["tiny-wan", "--device", "nowhere"], "not usable here"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_built(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *flags]) == 2
    assert words in capsys.readouterr().err


def test_without_diffusers_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["bench", "tiny-wan", "--steps", "3", "--device", "cpu", "--beside-diffusers"]) == 2
    assert "bachvid[bench]" in capsys.readouterr().err
