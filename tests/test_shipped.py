"""The shipped models: diffusers loads and runs them, they are complete, and small enough to ship.

pytest tests/test_shipped.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from bachvid.__main__ import main
from bachvid.evaluate.figures import Interval
from bachvid.evaluate.report import AGREEMENT, PRICE, briefly, fully, run_rows
from bachvid.evaluate.studio import Studio, timesteps_of
from bachvid.evaluate.table import figure_rows, markdown
from bachvid.method.identity import fingerprint
from bachvid.method.recipe import Recipe, load_preset
from bachvid.models.checkpoint import open_checkpoint
from bachvid.story import WEIGHTS, read_stories

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(path.parent.name for path in WEIGHTS.glob("*/model_index.json"))
EVIDENCE = sorted((ROOT / "docs" / "evidence").glob("*.json"))
PAGES = ("README.md", "docs/decisions.md", "docs/tables.md")
SHORT = (*AGREEMENT, *PRICE[:3])  # what a table of runs shows here
MIB = 2**20


def test_there_is_a_shipped_model() -> None:
    assert "tiny-cogvideox" in MODELS


def test_weights_are_small_enough() -> None:
    sizes = {path: path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 64 * MIB
    assert {str(path): size for path, size in sizes.items() if size >= 16 * MIB} == {}


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_comes_with_story_preset_and_record(name: str) -> None:
    folder = WEIGHTS / name
    (story,) = read_stories(folder / "story.txt")
    recipe = load_preset(folder / "preset.json")
    layers = open_checkpoint(folder).config.layers
    assert max(*recipe.mask_layers, *recipe.match_layers, *recipe.kv_layers) <= layers
    assert len(story.actions) == 4
    record = json.loads((folder / "training.json").read_text())
    assert {"made_by", "date", "seed", "torch", "processor", "videos"} <= set(record)
    for part in record["parts"].values():
        assert part["steps"] > 0 and part["minutes"] > 0
        assert part["recipes"] and part["measured"] and part["curve"]


@pytest.mark.parametrize("file", EVIDENCE, ids=lambda file: file.stem)
def test_the_evidence_is_of_these_very_weights(file: Path) -> None:
    settings = json.loads(file.read_text())["settings"]
    folder = WEIGHTS / settings["model"]
    checkpoint, recipe = open_checkpoint(folder), load_preset(folder / "preset.json")
    assert fingerprint(Studio.open(checkpoint, recipe, "cpu").parts) == settings["weights"]
    if settings["what"] != "options":  # those are what a preset stands on
        assert recipe.at(timesteps_of(checkpoint, recipe.steps)) == Recipe.from_dict(settings["recipe"])


@pytest.mark.parametrize("file", EVIDENCE, ids=lambda file: file.stem)
def test_the_pages_show_what_was_measured(file: Path) -> None:
    evidence = json.loads(file.read_text())
    pages = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
    if evidence["what"] == "options":
        found = {run: intervals(measured) for run, measured in evidence["differences"].items()}
        for columns in (AGREEMENT, PRICE):
            rows = run_rows(found, columns, fully, signed=True)
            assert markdown(rows) in pages["docs/decisions.md"]
        return
    bars = file.with_name(f"bars-{evidence['model']}.json")  # the same figures, of more groups
    if file == bars or (evidence["what"] == "controls" and not bars.exists()):
        rows = figure_rows(intervals(evidence["figures"]), evidence["settings"]["family"])
        assert markdown(rows) in pages["README.md"]
    if evidence["what"] != "bars":
        found = {run: intervals(measured) for run, measured in evidence["runs"].items()}
        assert markdown(run_rows(found, SHORT, briefly)) in pages["docs/tables.md"]


def intervals(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    """As they were before JSON, which has no NaN."""
    return {
        name: Interval(*(math.nan if end is None else end for end in each.values()))
        for name, each in found.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_makes_the_same_video(name: str, tmp_path: Path) -> None:
    folder = WEIGHTS / name
    story = read_stories(folder / "story.txt")[0].videos[1]
    checkpoint = open_checkpoint(folder)
    (width, height), frames = checkpoint.format.size, checkpoint.format.frames
    flags = ["--background", story.background, "--character", story.character, "--action", story.action]
    flags += ["--mode", "off", "--steps", "4", "--seed", "5", "--out", str(tmp_path / "ours")]
    assert main(["run", "--device", "cpu", "--model", name, *flags]) == 0
    ours = load_file(tmp_path / "ours/identity/latents.safetensors")["latents"]

    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        story.prompt(),
        negative_prompt="",
        width=width,
        height=height,
        num_frames=frames - 1 if checkpoint.family == "wan" else frames,  # where it adds one
        num_inference_steps=4,
        guidance_scale=load_preset(folder / "preset.json").guidance,
        generator=torch.manual_seed(5),  # the global one: Wan's pipeline lends its solver no other
        max_sequence_length=checkpoint.text_length,
        output_type="latent",
    ).frames
    assert theirs.std() > 0.3  # a video, not a blank
    assert (ours - theirs).abs().max() <= 1e-4
