"""Everything stays on the device it belongs to, and makes the same there: pytest tests/test_devices.py"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from elsewhere import DEVICE, elsewhere
from safetensors.torch import load_file
from torch import Tensor

from bachvid.__main__ import main
from bachvid.method.recipe import PRESETS

OPTIONS: dict[str, Any] = {  # of the method, all at once
    "inject_steps": (0, 40),
    "bg_inject_steps": (0, 45),
    "strength": 0.7,
    "bg_strength": 0.4,
    "mask_softmax": "text",
    "mask_split": "otsu",
    "margin": 1,
    "window": "frame",
    "min_similarity": 0.1,
    "require_identity_foreground": True,
    "smooth": True,
    "refresh": True,
    "branches": "both",
}


no_accelerator = pytest.mark.skipif(not torch.accelerator.is_available(), reason="there is none")


@pytest.fixture(params=[str(DEVICE), pytest.param("accelerator", marks=no_accelerator)])
def device(request: pytest.FixtureRequest) -> str:
    """Where else than on the CPU: on one that is only played, and on what this machine has."""
    if request.param == str(DEVICE):
        return request.param
    return torch.accelerator.current_accelerator().type


@pytest.fixture(scope="module", params=["cogvideox", "wan"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    tiny.train_tokenizer(root / "tokenizer")
    make = tiny.wan_pipeline if request.param == "wan" else tiny.pipeline
    make(root / "tokenizer").save_pretrained(root / "model")
    return root / "model"


def videos(out: Path, *flags: Any) -> dict[str, Tensor]:
    """The latents of every video that a run makes."""
    story = ["--background", "a kitchen", "--character", "a fox", "--action", "looks", "--action", "opens"]
    shape = ["--size", "80x48", "--frames", "9", "--steps", "4", "--dtype", "fp32"]
    assert main(["run", *story, *shape, *(str(flag) for flag in flags), "--out", str(out)]) == 0
    return {str(file.parent.relative_to(out)): load_file(file)["latents"] for file in out.rglob("latents.*")}


def convolutions_in_float32() -> Any:
    """Not in what PyTorch lets cuDNN take for it."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def assert_same_there(device: str, tmp_path: Path, *flags: Any) -> None:
    ours = videos(tmp_path / "ours", *flags, "--device", "cpu")
    with elsewhere() if device == str(DEVICE) else convolutions_in_float32():
        theirs = videos(tmp_path / "theirs", *flags, "--device", device)
    assert ours.keys() == theirs.keys() and "identity" in ours
    for name, latents in ours.items():
        assert (latents - theirs[name]).abs().max() <= 1e-4 * latents.abs().max()


@pytest.mark.parametrize("source", ["lockstep", "cache"])
def test_another_device_makes_the_same_videos(device: str, model: Path, tmp_path: Path, source: str) -> None:
    assert_same_there(device, tmp_path, "--model", model, "--source", source)


def test_and_so_it_does_by_every_option_and_beside_an_earlier_identity(
    device: str, model: Path, tmp_path: Path
) -> None:
    kind = "paper-wan-14b" if model.parent.name.startswith("wan") else "paper-cogvideox-5b"
    recipe = replace(PRESETS[kind].scaled_to(2, 40), tau_mask=10, tau_match=10, **OPTIONS)
    (tmp_path / "preset.json").write_text(json.dumps(recipe.to_dict()))
    flags = ("--model", model, "--preset", tmp_path / "preset.json", "--own-noise")
    assert_same_there(device, tmp_path / "first", *flags, "--save-identity", "--with-vanilla")
    known = tmp_path / "first/theirs/identity/trajectory.safetensors"
    assert_same_there(device, tmp_path / "second", *flags, "--identity", known)
