"""A checkpoint on disk: recognised by what its files say, loaded part by part, written for others to load.

    parts = open_checkpoint("weights/tiny-cogvideox")
    model = parts.transformer(torch.bfloat16, "cuda")

Two layouts are read: diffusers' (`model_index.json`, `transformer/`, `vae/`, `text_encoder/`, `tokenizer/`,
`scheduler/`), and the original release of each family (its parts, wherever they lie).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bachvid.models.cogvideox import CogVideoX
from bachvid.models.cogvideox_checkpoint import CogVideoXCheckpoint
from bachvid.models.cogvideox_vae import CogVideoXVAE
from bachvid.models.layouts import COGVIDEOX_DIFFUSERS, COGVIDEOX_VAE_DIFFUSERS, WAN_DIFFUSERS, Layout
from bachvid.models.parts import Checkpoint
from bachvid.models.wan import Wan
from bachvid.models.wan_checkpoint import WanCheckpoint
from bachvid.models.wan_layouts import wan_vae_diffusers
from bachvid.models.wan_vae import WanVAE
from bachvid.models.weights import WeightsError, read_config, read_json, save, write_json

__all__ = ["Checkpoint", "WeightsError", "diffusers_names", "open_checkpoint", "save_index", "save_model"]

PIPELINES: Mapping[str, type[Checkpoint]] = {
    "CogVideoXPipeline": CogVideoXCheckpoint,
    "WanPipeline": WanCheckpoint,
}
TRANSFORMERS: Mapping[str, type[Checkpoint]] = {
    "CogVideoXTransformer3DModel": CogVideoXCheckpoint,
    "WanTransformer3DModel": WanCheckpoint,
}


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """The checkpoint in a folder, whatever the folder is called.

    Raises WeightsError, one sentence with the file and the way out, for a part that is missing, unreadable or
    of another model. Damage inside a weights file shows when its part is loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"{folder} is no folder; give one that holds a checkpoint")
    if (second := folder / "transformer_2").exists():
        raise WeightsError(f"{second} is a second transformer, as Wan2.2 has; give a Wan2.1 of one")
    for file, families in (
        (folder / "model_index.json", PIPELINES),
        (folder / "transformer" / "config.json", TRANSFORMERS),
    ):
        if file.is_file() or file.is_symlink():  # a link that leads nowhere is told as one
            return families[_known(file, families)].open(folder)
    for family in PIPELINES.values():
        if found := family.find(folder):
            return found
    raise WeightsError(
        f"{folder} holds no text-to-video CogVideoX or Wan: no model_index.json, as diffusers writes it, and "
        f"no weights of an original release; {_instead(folder)}"
    )


def _instead(folder: Path) -> str:
    """What to do with a folder that is no checkpoint."""
    for inside in ("*", "*/*", "*/*/*"):
        if found := sorted(folder.glob(f"{inside}/model_index.json")):
            return f"give {found[0].parent}, which has one"
    config = folder / "config.json"
    if config.is_file() and read_json(config).get("_class_name") in TRANSFORMERS:
        return "a denoiser alone goes as transformer/ into a copy of the checkpoint it was made from"
    if any("lora" in file.name.lower() for file in folder.glob("*.safetensors")):
        return "a LoRA must be merged into its checkpoint first"
    return "give another folder"


def _known(file: Path, families: Mapping[str, type[Checkpoint]]) -> str:
    """The class that an index or a config names, if it is a text-to-video model of a single denoiser."""
    fix = "only text-to-video is read: give another folder"
    values = read_config(file, "_class_name", *families, fix=fix)
    if any(values.get("transformer_2") or ()):
        raise WeightsError(f"{file} names a second transformer, as Wan2.2 has; give a Wan2.1 of one")
    return str(values["_class_name"])


def save_model(
    model: CogVideoX | CogVideoXVAE | Wan | WanVAE, folder: Path | str, dtype: torch.dtype | None = None
) -> None:
    """Write a `transformer/` or `vae/` folder for diffusers, cast to `dtype` if one is given."""
    named = diffusers_names(model)
    tensors = {name: parameter.to(dtype or parameter.dtype) for name, parameter in named.items()}
    save(tensors, Path(folder) / "diffusion_pytorch_model.safetensors")
    write_json(Path(folder) / "config.json", model.config.to_dict())


def diffusers_names(model: CogVideoX | CogVideoXVAE | Wan | WanVAE) -> dict[str, nn.Parameter]:
    """The parameters of a model under diffusers' names."""
    layout = _diffusers_layout(model)
    return {layout.source(name).name: parameter for name, parameter in model.named_parameters()}


def save_index(folder: Path | str, pipeline: str, scheduler: Mapping[str, Any]) -> None:
    """Write what makes a folder of parts a `pipeline` of diffusers: its index and its scheduler's numbers."""
    write_json(Path(folder) / "scheduler" / "scheduler_config.json", scheduler)
    index = {**PIPELINES[pipeline].index, "scheduler": ["diffusers", scheduler["_class_name"]]}
    write_json(Path(folder) / "model_index.json", index)


def _diffusers_layout(model: CogVideoX | CogVideoXVAE | Wan | WanVAE) -> Layout:
    match model:
        case CogVideoX():
            return COGVIDEOX_DIFFUSERS
        case CogVideoXVAE():
            return COGVIDEOX_VAE_DIFFUSERS
        case Wan():
            return WAN_DIFFUSERS
        case WanVAE(config=config):
            return wan_vae_diffusers(len(config.dim_mult), config.num_res_blocks)
