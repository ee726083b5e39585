"""A checkpoint on disk: recognised by what its files say, loaded part by part, written for others to load.

    parts = open_checkpoint("weights/tiny-cogvideox")
    model = parts.transformer(torch.bfloat16, "cuda")

Two layouts are read: diffusers' (`model_index.json`, `transformer/`, `vae/`, `text_encoder/`, `tokenizer/`,
`scheduler/`), and SAT, the original release (a transformer, a VAE and a T5 folder, wherever they lie).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bachvid.models.cogvideox import CHECKPOINTS, CogVideoX, CogVideoXConfig
from bachvid.models.cogvideox_vae import CogVideoXVAE, CogVideoXVAEConfig
from bachvid.models.layouts import (
    COGVIDEOX_DIFFUSERS,
    COGVIDEOX_SAT,
    COGVIDEOX_VAE_DIFFUSERS,
    COGVIDEOX_VAE_SAT,
    Layout,
)
from bachvid.models.sat import find_parts, scheduler_config, transformer_config, vae_config
from bachvid.models.text import TextEncoder, tokenizer_file
from bachvid.models.weights import (
    Weights,
    WeightsError,
    load,
    read_config,
    read_json,
    save,
    weight_files,
    write_json,
)

__all__ = ["Checkpoint", "WeightsError", "open_checkpoint", "save_index", "save_transformer", "save_vae"]

PIPELINE = "CogVideoXPipeline"
INDEX = {  # what diffusers builds a pipeline from
    "_class_name": PIPELINE,
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
}

Config = TypeVar("Config")


@dataclass(frozen=True)
class Checkpoint:
    """A CogVideoX on disk; every number is known, no weight is read before a part is asked for."""

    layout: str  # "diffusers" or "sat"
    config: CogVideoXConfig
    vae_config: CogVideoXVAEConfig
    scheduler: Mapping[str, Any]  # what diffusers has in scheduler_config.json
    transformer_path: Path  # a file, or a folder of files
    vae_path: Path
    text_path: Path  # holds tokenizer/ and text_encoder/, or the files of both

    @property
    def name(self) -> str:
        """The published model with these numbers, such as "cogvideox-5b"; otherwise "cogvideox"."""
        return next((name for name, known in CHECKPOINTS.items() if known == self.config), "cogvideox")

    def transformer(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> CogVideoX:
        layout = COGVIDEOX_SAT if self.layout == "sat" else COGVIDEOX_DIFFUSERS
        return load(lambda: CogVideoX(self.config), Weights(self.transformer_path), layout, dtype, device)

    def vae(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CogVideoXVAE:
        layout = COGVIDEOX_VAE_SAT if self.layout == "sat" else COGVIDEOX_VAE_DIFFUSERS
        return load(lambda: CogVideoXVAE(self.vae_config), Weights(self.vae_path), layout, dtype, device)

    def text_encoder(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> TextEncoder:
        return TextEncoder.from_folder(self.text_path, self.config.text_length, dtype, device)


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """The checkpoint in a folder, whatever the folder is called.

    Raises WeightsError, one sentence with the file and the way out, for a part that is missing, unreadable or
    of another model. Damage inside a weights file shows when its part is loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError(f"{folder} is no folder; give one that holds a checkpoint")
    if (folder / "model_index.json").is_file() or (folder / "transformer" / "config.json").is_file():
        return _open_diffusers(folder)
    return _open_sat(folder)


def save_transformer(model: CogVideoX, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a `transformer/` folder for diffusers, cast to `dtype` if one is given."""
    _save(model, COGVIDEOX_DIFFUSERS, model.config.to_dict(), Path(folder), dtype)


def save_vae(model: CogVideoXVAE, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a `vae/` folder for diffusers, cast to `dtype` if one is given."""
    _save(model, COGVIDEOX_VAE_DIFFUSERS, model.config.to_dict(), Path(folder), dtype)


def save_index(folder: Path | str, scheduler: Mapping[str, Any]) -> None:
    """Write what makes a folder of parts a pipeline for diffusers: its index and its scheduler's numbers."""
    values = {"_class_name": "CogVideoXDDIMScheduler", **scheduler}
    write_json(values, Path(folder) / "scheduler" / "scheduler_config.json")
    write_json(
        {**INDEX, "scheduler": ["diffusers", values["_class_name"]]}, Path(folder) / "model_index.json"
    )


def _open_diffusers(folder: Path) -> Checkpoint:
    if (index := folder / "model_index.json").is_file():
        read_config(index, "_class_name", PIPELINE)
    config = _config(folder / "transformer", "CogVideoXTransformer3DModel", CogVideoXConfig.from_dict)
    vae = _config(folder / "vae", "AutoencoderKLCogVideoX", CogVideoXVAEConfig.from_dict)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    for part in ("transformer", "vae", "text_encoder"):
        weight_files(folder / part)
    tokenizer_file(folder / "tokenizer")
    _check_match(config, vae, folder / "vae", folder / "text_encoder")
    return Checkpoint("diffusers", config, vae, scheduler, folder / "transformer", folder / "vae", folder)


def _open_sat(folder: Path) -> Checkpoint:
    parts = find_parts(folder)
    config = transformer_config(parts.transformer)
    vae = vae_config(parts.vae, config)
    tokenizer_file(parts.text)
    _check_match(config, vae, parts.vae, parts.text)
    return Checkpoint("sat", config, vae, scheduler_config(config), *parts)


def _config(part: Path, class_name: str, read: Callable[[Mapping[str, Any]], Config]) -> Config:
    file = part / "config.json"
    values = read_config(file, "_class_name", class_name)
    try:
        return read(values)
    except (ValueError, KeyError) as error:
        raise WeightsError(f"{file}: {error}") from error


def _check_match(config: CogVideoXConfig, vae: CogVideoXVAEConfig, vae_path: Path, text_path: Path) -> None:
    """Raise WeightsError if the parts of a checkpoint are not of one model."""
    t5 = read_config(text_path / "config.json", "model_type", "t5")
    for what, path, has, needs in (
        ("channels", vae_path, vae.latent_channels, config.channels),
        ("frames a latent", vae_path, vae.temporal_compression_ratio, config.temporal_compression),
        ("text channels", text_path, t5.get("d_model"), config.text_width),
    ):
        if has != needs:
            raise WeightsError(
                f"{path} has {has} {what}, the transformer beside it needs {needs}; take both from one model"
            )


def _save(
    model: nn.Module, layout: Layout, config: Mapping[str, Any], folder: Path, dtype: torch.dtype | None
) -> None:
    parameters = {layout.source(name).name: parameter for name, parameter in model.named_parameters()}
    tensors = {name: parameter.to(dtype or parameter.dtype) for name, parameter in parameters.items()}
    save(tensors, folder / "diffusion_pytorch_model.safetensors")
    write_json(config, folder / "config.json")
