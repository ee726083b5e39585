"""From a training's work folder to a folder that diffusers loads: the averaged weights, in 16 bits."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bachvid.models.checkpoint import save_index, save_model
from bachvid.models.text import TEXT_ENCODERS, Tokenizer
from bachvid.models.weights import save, write_json
from bachvid.stage.family import AnyDiT, AnyVAE, family_of
from bachvid.stage.train_dit import DiTTask, Frozen
from bachvid.stage.train_text import GuessWords, TextTask, make_encoder, make_tokenizer
from bachvid.stage.train_vae import VAETask
from bachvid.stage.training import Work

if TYPE_CHECKING:
    from bachvid.stage.recipes import Recipe


def export(recipe: Recipe, work: Work, seed: int, out: Path) -> list[str]:
    """Write every part that has a checkpoint into the folder `out`; returns the names of those parts."""
    written = []
    if work.load(VAETask.name):
        vae = load_vae(recipe, work)
        save_model(vae, out / "vae", best_half(vae.parameters()))
        written.append(VAETask.name)
    if work.load(TextTask.name):
        save_text(load_encoder(recipe, work, seed), the_tokenizer(recipe, work, seed), out)
        written.append(TextTask.name)
    if work.load(DiTTask.name):
        dit = load_dit(recipe, work)
        save_model(dit, out / "transformer", best_half(dit.parameters()))
        written.append(DiTTask.name)
    family = family_of(recipe.dit.config)
    save_index(out, family.pipeline, family.scheduler)
    fps = 2 * recipe.vae.config.temporal_compression_ratio
    own = {"size": [recipe.dit.width, recipe.dit.height], "frames": recipe.dit.clips.frames, "fps": fps}
    write_json(out / "training.json", {**record(work, seed, written), "videos": own})
    return written


def load_vae(recipe: Recipe, work: Work) -> AnyVAE:
    """The averaged autoencoder, its latents of a spread of 1."""
    saved, family = work.need(VAETask.name), family_of(recipe.vae.config)
    vae = family.vae(family.normalised(recipe.vae.config, saved["state"]["inspections"][-1]))
    vae.load_state_dict(saved["averaged"])
    return vae.eval().requires_grad_(False)


def load_encoder(recipe: Recipe, work: Work, seed: int) -> Any:
    """The averaged text encoder, without the head that it was trained with."""
    vocabulary = the_tokenizer(recipe, work, seed).size
    trained = GuessWords(make_encoder(recipe.text, vocabulary), vocabulary)
    trained.load_state_dict(work.need(TextTask.name)["averaged"])
    return trained.encoder.eval().requires_grad_(False)


def load_dit(recipe: Recipe, work: Work) -> AnyDiT:
    """The averaged denoiser."""
    dit = family_of(recipe.dit.config).dit(recipe.dit.config)
    dit.load_state_dict(work.need(DiTTask.name)["averaged"])
    return dit.eval()


def load_frozen(recipe: Recipe, work: Work, seed: int, device: torch.device) -> Frozen:
    """What a denoiser is trained upon: exactly the numbers that are shipped, so after rounding to 16 bits."""
    vae, encoder = load_vae(recipe, work), load_encoder(recipe, work, seed)
    for model in (vae, encoder):
        half = best_half(model.parameters())
        for parameter in model.parameters():
            parameter.copy_(parameter.to(half))
        model.to(device)
    reader = TEXT_ENCODERS[recipe.text.kind]
    return Frozen(vae, reader(the_tokenizer(recipe, work, seed), lambda: encoder, recipe.text.length))


def the_tokenizer(recipe: Recipe, work: Work, seed: int) -> Tokenizer:
    """The tokenizer in the work folder, made there if it is missing."""
    folder = work.folder / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        return make_tokenizer(folder, recipe.text.length, seed)
    return Tokenizer.from_folder(folder)


def save_text(encoder: Any, tokenizer: Tokenizer, out: Path) -> None:
    """Write `text_encoder/` and `tokenizer/` as transformers reads them."""
    half = best_half(encoder.parameters())
    tensors = {name: parameter.to(half) for name, parameter in encoder.named_parameters()}
    save(tensors, out / "text_encoder" / "model.safetensors")
    config = deepcopy(encoder.config)
    config.architectures = [type(encoder).__name__]
    config.dtype = "float32"  # what it computes in, where nobody asks for less
    config.save_pretrained(out / "text_encoder")
    shutil.copytree(tokenizer.file.parent, out / "tokenizer", dirs_exist_ok=True)


def best_half(parameters: Iterable[Tensor]) -> torch.dtype:
    """float16 or bfloat16, whichever changes these parameters less."""
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    return min(torch.float16, torch.bfloat16, key=lambda dtype: (flat.to(dtype).float() - flat).norm().item())


def record(work: Work, seed: int, parts: list[str]) -> dict[str, Any]:
    """How these weights came about."""
    states = {part: work.need(part)["state"] for part in parts}
    return {
        "made_by": "bachvid stage train",
        "date": time.strftime("%Y-%m-%d"),
        "seed": seed,
        "torch": torch.__version__,
        "processor": processor(),
        "parts": {
            part: {
                "steps": state["step"],
                "minutes": round(state["seconds"] / 60, 1),
                "recipes": state["recipes"],
                "measured": state["inspections"][-1:],
                "curve": state["curve"][:: max(1, len(state["curve"]) // 100)],  # [step, seconds, loss]
            }
            for part, state in states.items()
        },
    }


def processor() -> str:
    """What this machine computes with."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known = Path("/proc/cpuinfo")  # Linux; elsewhere the platform module knows best
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor() or platform.machine()}"
