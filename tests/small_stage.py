"""A random checkpoint of the stage that makes three small frames: enough to walk through an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from stage_models import random_model


def small_model(folder: Path) -> Path:
    """Write a CogVideoX of three layers, the first two of which lend, for videos of 3 x 32 x 48.

    What it shows is never red, as puppets are: the readers are soon done with that.
    """
    random_model(folder, "tiny-cogvideox", layers=3)
    config = folder / "transformer" / "config.json"
    size = {"sample_height": 8, "sample_width": 12, "sample_frames": 3}  # of latents, but frames of video
    config.write_text(json.dumps(json.loads(config.read_text()) | size))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    values = load_file(weights)
    values["decoder.conv_out.conv.bias"] -= torch.tensor([50.0, 0.0, 0.0])
    save_file(values, weights)
    return folder
