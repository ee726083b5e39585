"""`bachvid calibrate` from prompts to a preset, on random models of both families, and its sentences."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_stage import small_model
from stage_models import random_model, untrained

from bachvid.__main__ import main
from bachvid.calibrate.analysis import Analysis
from bachvid.calibrate.command import add_arguments, begin
from bachvid.calibrate.estimate import estimate
from bachvid.calibrate.procedure import Found, Rules, calibrate
from bachvid.calibrate.provide import find_truth
from bachvid.calibrate.record import write_record
from bachvid.calibrate.truth import Eyes, Seen, StageJudge
from bachvid.console import Console
from bachvid.evaluate.studio import Studio
from bachvid.method.recipe import load_preset, own_recipe
from bachvid.method.spans import Parts
from bachvid.models.checkpoint import open_checkpoint
from bachvid.models.cogvideox_checkpoint import CogVideoXCheckpoint
from bachvid.models.cogvideox_vae import CHECKPOINTS
from bachvid.models.grid import Grid
from bachvid.models.wan_checkpoint import WanCheckpoint
from bachvid.models.wan_vae import WAN_2_1
from bachvid.pictures.frames import Frames
from bachvid.sampling.sampler import read_sampler
from bachvid.stage.captions import caption
from bachvid.stage.world import sample_group

STEPS = 3
RULES = Rules(masks="fused", ratio=0.7, most=15, matches="calm", match_count=2, vital="top", vital_count=1)


class Box(Eyes):
    """Says that the character fills the left half of every frame, and that one token moved by one."""

    about = "a box"

    def see(self, name: str, frames: Frames, parts: Parts) -> Seen:
        mask = torch.zeros(frames.shape[:3], dtype=torch.bool)
        mask[:, :, : frames.shape[2] // 2] = True
        return Seen(mask, None)

    def partners(self, frame: Seen, identity: Seen, grid: Grid) -> torch.Tensor:
        partners = torch.full((grid.tokens, grid.frames), -1)
        partners[1] = torch.arange(grid.frames) * grid.height * grid.width
        return partners


def small(folder: Path, name: str) -> Path:
    """A random model of three layers, for small videos."""
    if name == "tiny-cogvideox":
        return small_model(folder)
    random_model(folder, name, layers=3)
    (folder / "training.json").write_text(json.dumps({"videos": {"size": [48, 32], "frames": 3, "fps": 8}}))
    return folder


@pytest.fixture(scope="module", params=["tiny-cogvideox", "tiny-wan"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("models") / request.param, request.param)


def analysis_of(model: Path, out: Path, seed: int = 0) -> Analysis:
    checkpoint = open_checkpoint(model)
    timesteps = read_sampler(checkpoint.scheduler, STEPS).schedule.timesteps
    recipe = own_recipe(model, checkpoint.family, 3).at(timesteps)
    groups = [sample_group(random.Random(n), 2, held_out=False) for n in (2, 3)]
    stories = [[caption(clip) for clip in group] for group in groups]
    studio = Studio.open(checkpoint, recipe, "cpu")
    return begin(studio, Box(), StageJudge(), stories, seed, out, model, fps=8)


def found_in(model: Path, out: Path) -> Found:
    return calibrate(analysis_of(model, out), Console(), RULES, left_out=2)


def test_from_prompts_to_a_preset_and_a_page(model: Path, tmp_path: Path) -> None:
    analysis, found = analysis_of(model, tmp_path / "out"), found_in(model, tmp_path / "out")
    page = write_record(analysis, found, tmp_path / "preset.json")
    recipe = load_preset(tmp_path / "preset.json")
    assert recipe == found.recipe == load_preset(tmp_path / "out" / "preset.json")
    assert recipe.steps == STEPS and len(recipe.match_layers) <= 2 and len(recipe.kv_layers) == 1
    timesteps = analysis.studio.sampler.schedule.timesteps
    assert (
        recipe.mask_level == timesteps[recipe.tau_mask] and recipe.match_level == timesteps[recipe.tau_match]
    )
    selection = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert selection["mask"]["layers"] == list(recipe.mask_layers)
    assert selection["mask"]["layers_0based"] == [n - 1 for n in recipe.mask_layers]
    acts = json.loads((tmp_path / "out" / "figures" / "acts.json").read_text())
    assert acts["chosen"]["change"] > 0 and set(acts["others"]["layers"]).isdisjoint(recipe.kv_layers)
    pictures = {path.name for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert pictures == {"mask_grid.png", "match_grid.png", "skip_sheet.png"}
    assert "<html" in page.read_text() and len(list((tmp_path / "out" / "videos").iterdir())) == 4


def test_prompts_are_read_once_and_their_encoder_makes_room(model: Path, tmp_path: Path) -> None:
    analysis = analysis_of(model, tmp_path / "out")
    assert [len(group) for group in analysis.prompts] == [2, 2]
    for _ in analysis.observe():
        assert "model" not in vars(analysis.studio.encoder)


def test_a_calibration_that_was_stopped_goes_on(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = found_in(model, out)
    lines = (out / "without.jsonl").read_text().splitlines()
    (out / "without.jsonl").write_text("\n".join(lines[:4]) + '\n{"of": "1/2", "mea')  # killed while writing
    (out / "groups" / "001.safetensors").unlink()
    kept = (out / "groups" / "000.safetensors").stat().st_mtime_ns
    again = found_in(model, out)
    assert again.recipe == whole.recipe and again.selections == whole.selections
    assert (out / "groups" / "000.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match=f"another seed .* delete the whole folder {out}"):
        analysis_of(model, out, seed=1)
    (out / "without.jsonl").write_text("")
    with pytest.raises(ValueError, match=f"holds no results. .* delete the whole folder {out}"):
        analysis_of(model, out)


def test_a_preset_that_cannot_be_written_costs_nothing_else(model: Path, tmp_path: Path) -> None:
    analysis, found = analysis_of(model, tmp_path / "out"), found_in(model, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_record(analysis, found, tmp_path / "file" / "preset.json")
    assert load_preset(tmp_path / "out" / "preset.json") == found.recipe
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "figures" / "mask_grid.png").is_file()


@pytest.fixture(scope="module")
def hollow(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with an empty file for weights: whoever loads it ends with exit code 3."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("hollow") / "hollow")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    return folder


def refused(capsys: pytest.CaptureFixture[str], model: Path, *flags: str) -> str:
    """What is said of a mistake, which is told before the model is loaded."""
    assert main(["calibrate", str(model), *flags]) == 2
    return capsys.readouterr().err


def test_a_preset_beside_the_weights_is_replaced_only_by_name(
    hollow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, preset = ["--out", str(tmp_path / "out")], hollow / "preset.json"
    before = preset.read_bytes()
    said = refused(capsys, hollow, *out)
    assert "has a preset.json already" in said and str(preset) in said and "--preset" in said
    assert preset.read_bytes() == before and not (tmp_path / "out").exists()
    assert main(["calibrate", str(hollow), *out, "--preset", str(preset)]) == 3  # it went on, to the weights
    preset.rename(tmp_path / "moved.json")
    try:
        assert main(["calibrate", str(hollow), *out]) == 3
    finally:
        (tmp_path / "moved.json").rename(preset)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("file/preset.json", "cannot be written"),
        ("file/deeper/preset.json", "cannot be written"),
        ("folder", "is a folder"),
    ],
)
def test_a_preset_that_cannot_be_written_is_told_before_any_work(
    hollow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, sentence: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    flags = ("--out", str(tmp_path / "out"), "--preset", str(tmp_path / place))
    said = refused(capsys, hollow, *flags)
    assert sentence in said and str(tmp_path / place) in said and "--preset" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--groups", "0"), "--groups 0 is too few"),
        (("--prompts", "1"), "--prompts 1 is too few"),
        (("--most-layers", "0", "--masks", "fused"), "--most-layers 0 is too few"),
        (("--match-layers", "-1"), "--match-layers -1 is too few"),
        (("--steps", "-1"), "--steps -1 is too few"),
        (("--left-out", "0"), "--vital all"),
        (("--tflops", "0", "--plan"), "--tflops 0 does no work"),
        (("--ratio", "nan"), "--ratio nan is no share"),
        (("--truth", "Vision"), "neither stage, vision nor self, nor a folder"),
        (("--truth", "vision"), "--aesthetic"),
    ],
)
def test_flags_that_cannot_be_meant(
    hollow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], sentence: str
) -> None:
    more = ("--out", str(tmp_path / "out"), "--preset", str(tmp_path / "preset.json"))
    assert sentence in refused(capsys, hollow, *more, *flags)
    assert not list(tmp_path.iterdir())


def test_a_story_of_one_video_is_told(
    hollow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stories, pair = tmp_path / "stories.txt", "a hill#a red fox#waves\na hill#a red fox#jumps\n"
    stories.write_text(f"{pair}\na lake#a red fox#waves\n")
    flags = ("--stories", str(stories), "--out", str(tmp_path / "out"))
    more = ("--preset", str(tmp_path / "preset.json"))
    assert "Group 2 has a single video" in (said := refused(capsys, hollow, *flags, *more))
    assert str(stories) in said and not (tmp_path / "out").exists()
    assert main(["calibrate", str(hollow), *flags, *more, "--groups", "1"]) == 3  # the second is not used


def test_a_prompt_that_is_too_long_is_told(
    hollow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stories, fox = tmp_path / "stories.txt", "a hill#a red fox#"
    stories.write_text(f"{fox}waves\n{fox}jumps\n\n{fox}waves\n{fox}{'jumps ' * 600}\n")
    said = refused(capsys, hollow, "--stories", str(stories), "--plan")
    assert "In group 2: The prompt has" in said and "shorten the action" in said


@pytest.mark.parametrize("left_out", [0, 1])
def test_nobody_need_judge_where_nothing_is_left_out(hollow: Path, tmp_path: Path, left_out: int) -> None:
    flags = [str(hollow), "--vital", "all", "--left-out", str(left_out), "--preset", str(tmp_path / "preset")]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    judge = find_truth(parser.parse_args(flags), True, torch.device("cpu"), print)[1]
    assert (judge is None) == (left_out == 0)
    assert main(["calibrate", *flags, "--out", str(tmp_path / "out")]) == 3  # it went on, to the weights


def test_mistakes_are_told_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--steps", "2", "--groups", "1"]
    out += ["--preset", str(tmp_path / "preset.json")]
    assert main(["calibrate", str(model), *out, "--device", "nonsense"]) == 2
    assert main(["calibrate", str(model), *out, "--truth", str(tmp_path)]) == 2
    assert "aesthetic" in capsys.readouterr().err
    foreign = untrained(model, tmp_path / "foreign")
    assert main(["calibrate", str(foreign), *out]) == 2
    assert "--stories" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_videos_without_a_character_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(tmp_path / "model")  # nothing red is ever in its videos
    flags = ["--steps", "2", "--groups", "1", "--left-out", "1", "--out", str(tmp_path / "out")]
    assert main(["calibrate", str(model), *flags, "--preset", str(tmp_path / "preset.json")]) == 2
    assert "No character is found in the videos" in capsys.readouterr().err


def test_a_checkpoint_is_calibrated_by_itself_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stories, out, preset = tmp_path / "stories.txt", tmp_path / "out", tmp_path / "preset.json"
    stories.write_text("a quiet meadow#a red fox#waves\na quiet meadow#a red fox#walks to the left\n")
    flags = ["--stories", str(stories), "--steps", "4", "--out", str(out), "--preset", str(preset)]
    assert main(["calibrate", str(model), *flags, "--truth", "self"]) == 2
    assert "--vital all" in capsys.readouterr().err and not out.exists()
    preset.write_text("an old one, which is named and so replaced")
    assert main(["calibrate", str(model), *flags, "--truth", "self", "--vital", "all"]) == 0
    said = capsys.readouterr().out
    assert "0 without a layer" in said and "self-consistency" in said
    assert load_preset(preset).kv_layers == (1, 2, 3)
    assert json.loads((out / "run.json").read_text())["judge"] == "nobody"
    assert (
        not (out / "figures" / "vital.json").exists()
        and "self-consistency" in (out / "report.html").read_text()
    )


def test_a_plan_costs_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(model), "--plan", "--out", str(tmp_path / "out")]) == 0
    assert "TFLOP" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "name", "vae", "tokens", "tflop", "weights"),
    [
        (CogVideoXCheckpoint, "cogvideox-5b", CHECKPOINTS["cogvideox-5b"], 17_550, 332.2, 11.1),
        (WanCheckpoint, "wan2.1-t2v-14b", WAN_2_1, 32_760, 1678.4, 28.6),
    ],
)
def test_the_cost_of_published_models(
    kind: Any, name: str, vae: Any, tokens: int, tflop: float, weights: float
) -> None:
    """The same arithmetic, counted by hand from the models' shapes."""
    nowhere = Path("nowhere")
    checkpoint = kind("original", kind.published[name], vae, {}, nowhere, nowhere, nowhere)
    cost = estimate(checkpoint, 50, 8, 2, 8, 4, torch.bfloat16)
    assert cost.tokens == tokens and cost.forward / 1e12 == pytest.approx(tflop, rel=1e-3)
    assert cost.observe == 8 * 2 * 50 * 2 and cost.leave_out == 8 * checkpoint.config.layers * 100
    assert cost.memory / 1e9 > weights and cost.disk > 0
    assert f"{tokens:,} tokens" in cost.sentence(4e14)
