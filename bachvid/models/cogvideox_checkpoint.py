"""A CogVideoX on disk, in diffusers' layout or in that of its original release, made with SAT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bachvid.models.cogvideox import CHECKPOINTS, CogVideoX, CogVideoXConfig
from bachvid.models.cogvideox_vae import CogVideoXVAE, CogVideoXVAEConfig, tiles_of
from bachvid.models.layouts import (
    COGVIDEOX_DIFFUSERS,
    COGVIDEOX_SAT,
    COGVIDEOX_VAE_DIFFUSERS,
    COGVIDEOX_VAE_SAT,
)
from bachvid.models.parts import Checkpoint, Format, check_fit
from bachvid.models.sat import find_parts, scheduler_config, transformer_config, vae_config
from bachvid.models.text import TextEncoder, tokenizer_file
from bachvid.models.weights import Weights, load, read_config


class CogVideoXCheckpoint(Checkpoint):
    """CogVideoX-2B, 5B, 1.5-5B, or one of their kind."""

    family = "cogvideox"
    published = CHECKPOINTS
    wide = "predictions"
    config: CogVideoXConfig
    vae_config: CogVideoXVAEConfig

    index: ClassVar[Mapping[str, Any]] = {
        "_class_name": "CogVideoXPipeline",
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }

    configs = CogVideoXConfig, CogVideoXVAEConfig
    text = TextEncoder

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        parts = find_parts(folder)
        if parts is None:
            return None
        config = transformer_config(parts.transformer)
        tokenizer_file(parts.text)
        found = cls("original", config, vae_config(parts.vae, config), scheduler_config(config), *parts)
        return found.checked(parts.text, read_config(parts.text / "config.json", "model_type", cls.text.kind))

    def checked(self, text: Path, settings: Mapping[str, Any]) -> Self:
        config, vae = self.config, self.vae_config
        check_fit(
            ("channels", self.vae_path, vae.latent_channels, config.channels),
            (
                "frames a latent",
                self.vae_path,
                vae.temporal_compression_ratio,
                config.temporal_compression,
            ),
            ("text channels", text, settings.get("d_model"), config.text_width),
        )
        return self

    @property
    def format(self) -> Format:
        config, scale = self.config, self.vae_config.spatial_compression_ratio
        second = config.temporal_compression  # frames that share a latent
        own = (config.sample_width * scale, config.sample_height * scale)
        longer = config.patch_frames is not None  # 1.5 stores the reach of its positions, not a size
        return Format(
            size=(1360, 768) if longer else own,
            size_unit=scale * config.patch,
            side=scale * config.sample_height if longer else None,
            frames=config.sample_frames,
            frame_unit=2 * second,
            longest=161 if longer else config.sample_frames,
            fps=max(1, (4 if longer else 2) * second),
        )

    @property
    def text_length(self) -> int:
        return self.config.text_length

    @property
    def rotary(self) -> bool:
        return self.config.rotary

    @property
    def trained_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.rotary else torch.float16

    def check_tiling(self) -> None:
        tiles_of(self.vae_config, encoding=False)

    def latent_shape(self, size: tuple[int, int], frames: int) -> tuple[int, ...]:
        scale, deep = self.vae_config.spatial_compression_ratio, self._deep(frames)
        filled = deep + -deep % (self.config.patch_frames or 1)
        return 1, filled, self.config.channels, size[1] // scale, size[0] // scale

    def shown(self, latents: Tensor, frames: int) -> Tensor:
        return latents[:, latents.shape[1] - self._deep(frames) :]  # 1.5 fills its patches in front

    def outline(self) -> CogVideoX:
        with torch.device("meta"):
            return CogVideoX(self.config)

    def transformer(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> CogVideoX:
        layout = COGVIDEOX_DIFFUSERS if self.layout == "diffusers" else COGVIDEOX_SAT
        return load(lambda: CogVideoX(self.config), Weights(self.transformer_path), layout, dtype, device)

    def vae(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> CogVideoXVAE:
        layout = COGVIDEOX_VAE_DIFFUSERS if self.layout == "diffusers" else COGVIDEOX_VAE_SAT
        return load(lambda: CogVideoXVAE(self.vae_config), Weights(self.vae_path), layout, dtype, device)

    def text_encoder(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> TextEncoder:
        return TextEncoder.from_folder(self.text_path, self.text_length, dtype, device)

    def _deep(self, frames: int) -> int:
        return (frames - 1) // self.config.temporal_compression + 1
