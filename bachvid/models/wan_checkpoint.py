"""A Wan2.1 text-to-video model on disk, in diffusers' layout or in that of its original release."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bachvid.models.layouts import SAME, WAN_DIFFUSERS
from bachvid.models.parts import Checkpoint, Format, check_fit
from bachvid.models.text import TextEncoder, WanTextEncoder
from bachvid.models.wan import CHECKPOINTS, ISLANDS, Wan, WanConfig
from bachvid.models.wan_layouts import wan_vae_diffusers
from bachvid.models.wan_original import (
    SCHEDULER,
    find_parts,
    open_text,
    text_config,
    vae_config,
)
from bachvid.models.wan_vae import WanVAE, WanVAEConfig
from bachvid.models.weights import Weights, load, read_json

LONGEST_TEXT = 512  # tokens, whatever the tokenizer says


class WanCheckpoint(Checkpoint):
    """Wan2.1 T2V 1.3B, 14B, or one of their kind."""

    family = "wan"
    published = CHECKPOINTS
    wide = "latents"
    config: WanConfig
    vae_config: WanVAEConfig

    index: ClassVar[Mapping[str, Any]] = {
        "_class_name": "WanPipeline",
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }

    configs = WanConfig, WanVAEConfig
    text = WanTextEncoder

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        parts = find_parts(folder)
        if parts is None:
            return None
        found = cls(
            "original",
            parts.config,
            vae_config(parts.vae),
            SCHEDULER,
            parts.transformer,
            parts.vae,
            parts.text.path,
        )
        return found.checked(parts.text.path, text_config(parts.text))

    def checked(self, text: Path, settings: Mapping[str, Any]) -> Self:
        check_fit(
            ("channels", self.vae_path, self.vae_config.z_dim, self.config.channels),
            ("text channels", text, settings.get("d_model"), self.config.text_width),
        )
        return self

    @property
    def format(self) -> Format:
        scale, second = self.vae_config.spatial_compression_ratio, self.vae_config.temporal_compression_ratio
        record = self.text_path / "training.json"  # a model trained here says what it was trained on
        own = read_json(record).get("videos", {}) if record.is_file() else {}
        return Format(
            size=tuple(own.get("size", (832, 480))),
            size_unit=scale * self.config.patch[1],
            side=scale * self.config.patch[1] * self.config.longest,
            frames=own.get("frames", 81),
            frame_unit=second * self.config.patch[0],
            longest=second * (self.config.longest - 1) + 1,
            fps=own.get("fps", 16),
        )

    @property
    def text_length(self) -> int:
        if self.layout == "original":
            return LONGEST_TEXT
        file = self.text_path / "tokenizer" / "tokenizer_config.json"
        told = read_json(file).get("model_max_length") if file.is_file() else None
        return min(int(told or LONGEST_TEXT), LONGEST_TEXT)

    @property
    def trained_dtype(self) -> torch.dtype:
        return torch.bfloat16

    def check_tiling(self) -> None:
        pass  # its tiles are the same for all sizes, and fit

    def latent_shape(self, size: tuple[int, int], frames: int) -> tuple[int, ...]:
        scale, second = self.vae_config.spatial_compression_ratio, self.vae_config.temporal_compression_ratio
        return 1, self.config.channels, (frames - 1) // second + 1, size[1] // scale, size[0] // scale

    def shown(self, latents: Tensor, frames: int) -> Tensor:
        return latents

    def outline(self) -> Wan:
        with torch.device("meta"):
            return Wan(self.config)

    def transformer(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        islands: str = "diffusers",
    ) -> Wan:
        """The denoiser, loaded; `islands`, of `wan.ISLANDS`, says what stays in float32."""
        layout = WAN_DIFFUSERS if self.layout == "diffusers" else SAME
        build, weights = partial(Wan, self.config, ISLANDS[islands]), Weights(self.transformer_path)
        return load(build, weights, layout, dtype, device, wide=ISLANDS[islands].parts)

    def vae(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> WanVAE:
        config = self.vae_config
        named = wan_vae_diffusers(len(config.dim_mult), config.num_res_blocks)
        layout = named if self.layout == "diffusers" else SAME
        return load(partial(WanVAE, config), Weights(self.vae_path), layout, dtype, device)

    def text_encoder(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> TextEncoder:
        if self.layout == "original":
            return open_text(self.text_path, self.text_length, dtype, device)
        return WanTextEncoder.from_folder(self.text_path, self.text_length, dtype, device)
