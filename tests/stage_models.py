"""Random checkpoints of the stage's words and sizes, small enough to run in a test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny

from bachvid.method.recipe import Recipe
from bachvid.models.checkpoint import save_index, save_model
from bachvid.models.text import TEXT_ENCODERS
from bachvid.stage.family import family_of
from bachvid.stage.recipes import RECIPES
from bachvid.stage.train_text import make_encoder, make_tokenizer

RECIPE = {
    "tiny-cogvideox": Recipe(10, "joint", (1, 2), 4, "joint", (2,), 4, (1, 2)),
    "tiny-wan": Recipe(10, "cross", (1, 2), 4, "self", (2,), 4, (1, 2)),
}

NARROW: Any = {
    "tiny-cogvideox": {"block_out_channels": (8, 8, 8), "norm_num_groups": 4},
    "tiny-wan": {"base_dim": 4},
}


def random_model(folder: Path, name: str, layers: int = 2) -> Path:
    """Write a checkpoint like the shipped one of this name, with random weights and a preset for 10 steps."""
    big = RECIPES[name]
    family = family_of(big.dit.config)
    vae = replace(big.vae.config, **NARROW[name])
    save_model(tiny.randomised(family.vae(vae)), folder / "vae")
    dit = replace(big.dit.config, layers=layers, heads=2, head_width=16)
    save_model(tiny.randomised(family.dit(dit)), folder / "transformer")
    tokenizer = make_tokenizer(folder / "tokenizer", big.text.length, seed=0)
    encoder = tiny.randomised(make_encoder(replace(big.text, layers=1), tokenizer.size))
    TEXT_ENCODERS[big.text.kind](tokenizer, lambda: encoder, big.text.length).save(folder)
    save_index(folder, family.pipeline, family.scheduler)
    videos = {"size": [big.dit.height * 3 // 2, big.dit.height], "frames": big.dit.clips.frames, "fps": 8}
    (folder / "training.json").write_text(json.dumps({"videos": videos}))
    (folder / "preset.json").write_text(json.dumps(RECIPE[name].to_dict()))
    return folder


def untrained(model: Path, folder: Path) -> Path:
    """The same model without the record that it was trained here."""
    folder.mkdir()
    for part in model.iterdir():
        if part.name != "training.json":
            (folder / part.name).symlink_to(part)
    return folder
