"""The models that ship, in numbers: what they are and how they are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bachvid.models.cogvideox import CogVideoXConfig
from bachvid.models.cogvideox_vae import CogVideoXVAEConfig
from bachvid.models.wan import WanConfig
from bachvid.models.wan_vae import WanVAEConfig
from bachvid.stage.train_dit import Diet, DiTRecipe
from bachvid.stage.train_text import TextRecipe
from bachvid.stage.train_vae import VAERecipe
from bachvid.stage.training import Pace


@dataclass(frozen=True)
class Recipe:
    """The three parts of one shipped model."""

    vae: VAERecipe
    text: TextRecipe
    dit: DiTRecipe

    def for_gpu(self) -> Recipe:
        """The same models with batches that fill a GPU."""
        return Recipe(
            replace(self.vae, images=64, clips=32),
            replace(self.text, batch=512),
            replace(
                self.dit,
                images=Diet(1, 256, 4096, 16),
                clips=Diet(5, 128, 2048, 16),
                pace=replace(self.dit.pace, lap=1.0),  # what they undo at first is soon learnt again
            ),
        )


TINY_COGVIDEOX = Recipe(
    vae=VAERecipe(
        config=CogVideoXVAEConfig(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(16, 32, 48),
            layers_per_block=1,
            norm_num_groups=8,
            temporal_compression_ratio=1,  # puppets move up to 20 pixels a frame: more needs a larger network
            sample_height=64,
            sample_width=96,
            scaling_factor=1.0,  # until it is measured
        ),
        height=64,
        width=96,
        frames=5,
        images=6,
        clips=2,
        pace=Pace(ema=0.98, last_ema=0.99),
    ),
    text=TextRecipe(length=48),
    dit=DiTRecipe(
        config=CogVideoXConfig(
            layers=8,
            heads=4,
            head_width=32,
            channels=16,
            patch=2,
            patch_frames=None,
            text_width=128,
            text_length=48,
            time_width=128,
            rotary=True,
            sample_height=16,
            sample_width=24,
            sample_frames=5,
            temporal_compression=1,
            spatial_scale=1.875,
            temporal_scale=1.0,
        ),
        height=64,
        width=96,
        images=Diet(frames=1, batch=12, first=1024, fresh=3),
        clips=Diet(frames=5, batch=4, first=1024, fresh=1),  # a lap learns 192 by heart
        pace=Pace(decay=0.25, lap=0.35, ema=0.995, last_ema=0.998),
    ),
)
TINY_WAN = Recipe(
    vae=replace(
        TINY_COGVIDEOX.vae,
        config=WanVAEConfig(
            in_channels=3,
            out_channels=3,
            z_dim=16,
            base_dim=16,
            dim_mult=(1, 2, 3),
            num_res_blocks=1,
            temperal_downsample=(False, False),
            latents_mean=(0.0,) * 16,  # until they are measured
            latents_std=(1.0,) * 16,
        ),
    ),
    text=replace(TINY_COGVIDEOX.text, kind="umt5"),
    dit=replace(
        TINY_COGVIDEOX.dit,
        config=WanConfig(
            layers=8,
            heads=4,
            head_width=32,
            inner=512,
            channels=16,
            patch=(1, 2, 2),
            text_width=128,
            time_features=128,
            text_norm=True,
            longest=1024,
        ),
        settled=0.7,  # as noisy as 0.85 of the other's schedule
        # where its text has no place, left and right are slow to be told apart, and so is what leans
        slow_verbs={"walks": 0.2, "bows": 0.2},
        lean=0.8,  # its schedule leans to noise by itself
        begins_as="tiny-cogvideox",
        images_only=0.4,  # for the blocks that it begins with have seen movement
    ),
)
RECIPES: Mapping[str, Recipe] = {"tiny-cogvideox": TINY_COGVIDEOX, "tiny-wan": TINY_WAN}
