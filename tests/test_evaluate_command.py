"""`bachvid evaluate`: figures with intervals and bars, results on disk, and a whole run at toy size."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from bachvid.__main__ import main
from bachvid.errors import UsageError
from bachvid.evaluate.figures import FIGURES, Interval, figures_of
from bachvid.evaluate.ledger import Ledger
from bachvid.evaluate.studio import Studio, together
from bachvid.evaluate.table import table
from bachvid.method.group import Group
from bachvid.method.group import vanilla as vanilla_takes
from bachvid.method.recipe import Recipe, load_preset
from bachvid.method.spans import Parts
from bachvid.models.checkpoint import open_checkpoint, save_index, save_model
from bachvid.models.cogvideox import CogVideoX
from bachvid.models.cogvideox_vae import CogVideoXVAE
from bachvid.models.sat import SCHEDULER
from bachvid.models.text import TextEncoder
from bachvid.stage.captions import caption
from bachvid.stage.recipes import TINY_COGVIDEOX
from bachvid.stage.train_text import make_encoder, make_tokenizer
from bachvid.stage.world import Clip, sample_group


def group(seed: int, videos: int = 3) -> list[Clip]:
    return sample_group(random.Random(seed), videos)


# Figures, intervals and bars.


def made_up(groups: int, seed: int) -> list[dict[str, float]]:
    """Groups whose every figure is known on average: each named value scatters round its own mean."""
    rng = random.Random(seed)
    return [{name: value + rng.gauss(0, 0.01) for name, value in AVERAGE.items()} for _ in range(groups)]


RUNS = ("vanilla_shared", "vanilla_own", "ours_shared", "ours_own", "only_background", "random_match")
AVERAGE = {
    f"{run}.{what}": 0.5 for run in RUNS for what in ("action", "hidden", "cells", "off_palette", "lost")
}
AVERAGE |= {f"{run}.{what}": 20.0 for run in RUNS for what in ("psnr_bg", "psnr_fg")}
AVERAGE |= {"vanilla.action": 1.0, "vanilla.stated": 1.0, "vanilla.seconds": 3.0}
AVERAGE |= {"mask.iou": 0.8, "match.pck1": 0.9, "match.mse": 1.0, "match.mse_same_place": 10.0}


def test_intervals_are_the_same_for_the_same_seed() -> None:
    groups = made_up(10, 0)
    assert figures_of(groups, 3) == figures_of(groups, 3) != figures_of(groups, 4)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(40):
        found = figures_of(made_up(30, trial), trial)["mask_iou"]
        hits += found.low <= 0.8 <= found.high
    assert 34 <= hits <= 40


def test_figures_say_what_their_names_say() -> None:
    values = AVERAGE | {
        "ours_shared.psnr_bg": 27.0, "ours_own.psnr_fg": 24.0, "ours_shared.hidden": 0.9,
        "ours_shared.action": 0.47, "ours_shared.lost": 1, "ours_own.lost": 2,
        "ours_shared.off_palette": 0.55, "only_background.psnr_fg": 19.0, "random_match.psnr_fg": 18.0,
    }  # fmt: skip
    found = {name: interval.mean for name, interval in figures_of([values] * 2, 0).items()}
    expected = {
        "psnr_bg_shared": 27, "psnr_bg_gain_shared": 7, "psnr_bg_gain_own": 0, "psnr_fg_gain_shared": 0,
        "psnr_fg_gain_own": 4, "hidden_share": 0.8, "cells_share": 0, "action_drop": 3, "lost": 3,
        "fg_gain_over_bg_only": 1, "fg_gain_over_random_match": 2, "offpalette_ratio": 0.1,
        "match_mse_ratio": 0.1, "match_pck1": 0.9, "mask_iou": 0.8,
        "seconds_per_video": 3, "action_vanilla": 1, "stated_vanilla": 1,
    }  # fmt: skip
    assert found == pytest.approx(expected)


def test_clean_videos_divide_by_no_zero_and_unmeasured_values_are_left_out() -> None:
    clean = AVERAGE | {"vanilla_shared.off_palette": 0.0, "ours_shared.off_palette": 0.0}
    gap = clean | {"ours_shared.psnr_bg": math.nan}
    found = figures_of([clean, gap, clean | {"ours_shared.psnr_bg": 22.0}], 0)
    assert found["offpalette_ratio"].mean == 0
    assert found["psnr_bg_shared"].mean == 21
    nothing = figures_of([gap, gap], 0)["psnr_bg_shared"]
    assert all(math.isnan(value) for value in nothing)


def test_a_bar_is_cleared_by_the_worse_end_of_the_interval() -> None:
    by_name = {figure.name: figure for figure in FIGURES}
    found = Interval(0.72, 0.69, 0.75)
    assert by_name["mask_iou"].missing(found, "cogvideox") == pytest.approx(0.01)
    assert by_name["mask_iou"].missing(found, "wan") == pytest.approx(-0.14)
    assert by_name["action_drop"].missing(Interval(1, 0, 2.5), "cogvideox") == pytest.approx(0.5)
    found = dict.fromkeys(by_name, Interval(0.75, 0.71, 0.79)) | {"action_drop": Interval(*[math.nan] * 3)}
    lines = {line.split()[0]: line for line in table(found, "cogvideox").splitlines()[2:]}
    assert lines["mask_iou"].endswith("reached")
    assert lines["psnr_bg_shared"].endswith("missed by 27.3")
    assert lines["action_drop"].endswith("not measured")
    assert "0.55" in table(found, "wan") and re.search(r"psnr_bg_shared .*none$", table(found, "wan"), re.M)


# The ledger.


def test_a_ledger_goes_on_after_a_crash_and_keeps_what_is_not_a_number(tmp_path: Path) -> None:
    path, settings = tmp_path / "a.groups.jsonl", {"seed": 1, "layers": [1, 2]}
    Ledger(path, settings).add("0", {"x": 1.5, "y": math.nan})
    with path.open("a") as file:
        file.write('\n{"of": "1", "measu')  # killed while writing
    again = Ledger(path, settings)
    assert list(again.done()) == ["0"]
    again.add("2", {"x": 2.5, "y": 3.5})
    Ledger(path, settings).add("1", {"x": 0.5, "y": 1.0})
    found = again.done()
    assert sorted(found) == ["0", "1", "2"] and found["2"] == {"x": 2.5, "y": 3.5}
    assert found["0"]["x"] == 1.5 and math.isnan(found["0"]["y"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_ledger_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.groups.jsonl"
    Ledger(path, {"seed": 1, "steps": 20})
    with pytest.raises(UsageError, match=r"another steps \(20, not 25\)"):
        Ledger(path, {"seed": 1, "steps": 25})


# A whole run.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the stage's words and sizes with random weights; its preset is for 10 steps."""
    folder, big = tmp_path_factory.mktemp("models") / "random-tiny", TINY_COGVIDEOX
    vae = replace(big.vae.config, block_out_channels=(8, 8, 8), norm_num_groups=4)
    dit = replace(big.dit.config, layers=2, heads=2, head_width=16)
    save_model(tiny.randomised(CogVideoXVAE(vae)), folder / "vae")
    save_model(tiny.randomised(CogVideoX(dit)), folder / "transformer")
    tokenizer = make_tokenizer(folder / "tokenizer", big.text.length, seed=0)
    encoder = tiny.randomised(make_encoder(replace(big.text, layers=1), tokenizer.size))
    TextEncoder(tokenizer, encoder, big.text.length).save(folder)
    save_index(folder, "CogVideoXPipeline", SCHEDULER)
    recipe = Recipe(10, "joint", (1, 2), 4, "joint", (2,), 4, (1, 2))
    (folder / "preset.json").write_text(json.dumps(recipe.to_dict()))
    return folder


def evaluate(model: Path, out: Path, *more: str) -> int:
    given = {"--model": str(model), "--out": str(out), "--prompts": "2", "--steps": "4", "--groups": "2"}
    return main(["evaluate", "--stage", *(part for pair in given.items() for part in pair), *more])


def test_an_evaluation_from_prompts_to_figures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.json"
    assert evaluate(model, out) == 0
    values = json.loads(out.read_text())
    assert (values["model"], values["groups"], values["seed"]) == ("random-tiny", 2, 0)
    assert list(values["figures"]) == [figure.name for figure in FIGURES]
    assert all(list(each) == ["mean", "low", "high"] for each in values["figures"].values())
    assert values["figures"]["seconds_per_video"]["mean"] > 0
    assert values["settings"]["recipe"]["tau_mask"] == 2 and values["settings"]["recipe"]["steps"] == 4
    assert "mask_iou" in capsys.readouterr().out


def test_shards_share_a_ledger_and_measure_what_one_process_would(model: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole.json", tmp_path / "halves.json"
    evaluate(model, whole)
    evaluate(model, halves, "--shard", "2/2")
    assert not halves.exists()
    evaluate(model, halves, "--shard", "1/2")
    one, two = (json.loads(path.read_text())["measured"] for path in (whole, halves))
    for name in one.keys() - {"vanilla.seconds"}:
        assert one[name] == two[name], name


def test_an_evaluation_that_is_done_measures_nothing_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.json"
    evaluate(model, out, "--groups", "1")
    ledger, text = tmp_path / "out.groups.jsonl", out.read_text()
    lines = ledger.read_text()
    out.unlink()
    assert evaluate(model, out, "--groups", "1") == 0
    assert (ledger.read_text(), out.read_text()) == (lines, text)
    assert evaluate(model, out, "--groups", "1", "--steps", "3") == 2
    assert "another recipe" in capsys.readouterr().err


def test_the_identity_is_the_same_alone_and_together(model: Path) -> None:
    """What lets one video serve every run of a group, and pre-runs be shared."""
    checkpoint = open_checkpoint(model)
    studio = Studio.open(checkpoint, load_preset(model / "preset.json").at(5), "cpu")
    denoiser, prompts = studio.denoiser(), studio.prompts([Parts(*caption(clip)) for clip in group(3)])
    identity, *others = [studio.alone(denoiser, prompt, 1) for prompt in prompts]
    frames = together(denoiser, studio.recipe, identity, others)
    whole = Group(studio.denoiser(), studio.recipe, prompts, [1] * 3)
    list(whole.run())
    alone = [
        take for progress, take in vanilla_takes(studio.denoiser(), prompts, [1] * 3) if progress.step == 4
    ]
    for ours, expected in zip([identity.take, *(frame.take for frame in frames)], whole.takes, strict=True):
        assert torch.equal(ours.latents, expected.latents)
    for seen, expected in zip([identity, *others], alone, strict=True):
        assert torch.equal(seen.take.latents, expected.latents)
    assert len(identity.trajectory) == 6


def test_random_matches_borrow_as_much_from_other_tokens(model: Path) -> None:
    studio = Studio.open(open_checkpoint(model), load_preset(model / "preset.json").at(5), "cpu")
    denoiser, prompts = studio.denoiser(), studio.prompts([Parts(*caption(clip)) for clip in group(3, 2)])
    identity, other = [studio.alone(denoiser, prompt, 1) for prompt in prompts]
    (true,), (random_,) = (
        together(denoiser, studio.recipe, identity, [other], shuffle)
        for shuffle in (None, torch.Generator().manual_seed(0))
    )
    assert torch.equal(true.places.matched, random_.places.matched) and len(true.places.matched) > 10
    assert identity.mask[random_.places.partners].all()
    assert not torch.equal(true.places.partners, random_.places.partners)
    assert not torch.equal(true.take.latents, random_.take.latents)
