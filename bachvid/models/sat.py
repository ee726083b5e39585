"""The original release of CogVideoX, made with SAT: no config files, so its tensors tell what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bachvid.models.cogvideox import CHECKPOINTS, CogVideoXConfig
from bachvid.models.cogvideox_vae import CogVideoXVAEConfig
from bachvid.models.weights import (
    PICKLED,
    SAFE,
    Weights,
    WeightsError,
    count,
    find_kinds,
    may_hold_weights,
    only,
    read_json,
)

PATCHES = "mixins.patch_embed.proj.weight"  # a transformer has this,
HEAD = "mixins.final_layer.linear.weight"
POSITIONS = "mixins.pos_embed.pos_embedding"
RESNET = "encoder.down.{}.block.{}.conv1.conv.weight"  # and a VAE these

SCHEDULER = {  # the release keeps these numbers in its training configs; the 2B shifts by 3
    "_class_name": "CogVideoXDDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


class Parts(NamedTuple):
    transformer: Path
    vae: Path
    text: Path


def find_parts(folder: Path) -> Parts | None:
    """The text-to-video transformer, the VAE and the T5 folder, at most three levels down, by contents.

    None without such a transformer.
    """
    below = [path for depth in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(depth))]
    texts = [path.parent for path in below if path.name == "config.json" and _describes_t5(path)]
    files = (file for file in below if may_hold_weights(file, SAFE + PICKLED) and file.parent not in texts)
    found = find_kinds(files, KINDS)
    if not found["transformer"]:
        return None
    return Parts(
        only(found["transformer"], "transformer", folder, "the release's"),
        only(found["VAE"], "VAE", folder, "3d-vae.pt"),
        only(texts, "T5", folder, "t5-v1_1-xxl, its config.json, weights and spiece.model in one folder,"),
    )


def transformer_config(file: Path) -> CogVideoXConfig:
    """The numbers of a stored transformer: what its shapes show, and the published numbers of its kind."""
    shapes = Weights(file).shapes
    try:
        width, *patch = shapes[PATCHES]
        layers = count(r"transformer\.layers\.(\d+)\.", shapes)
        head_width = shapes["mixins.adaln_layer.query_layernorm_list.0.weight"][0]
        shown: dict[str, Any] = {
            "layers": layers,
            "heads": width // head_width,
            "head_width": head_width,
            "text_width": shapes["mixins.patch_embed.text_proj.weight"][1],
            "time_width": shapes["time_embed.0.weight"][0],
        }
    except KeyError as error:
        raise WeightsError(f"{file} has no tensor {error}; fetch it again") from error
    if len(patch) == 1:  # a patch of several frames, which only 1.5 has, is stored flat
        known = CHECKPOINTS["cogvideox1.5-5b"]
        return replace(known, **shown, channels=patch[0] // (known.patch**2 * (known.patch_frames or 1)))
    added = replace(CHECKPOINTS["cogvideox-2b"], **shown, channels=patch[0], patch=patch[1])
    if POSITIONS in shapes or added == CHECKPOINTS["cogvideox-2b"]:
        return added
    return replace(CHECKPOINTS["cogvideox-5b"], **shown, channels=patch[0], patch=patch[1])


def vae_config(file: Path, transformer: CogVideoXConfig) -> CogVideoXVAEConfig:
    """The numbers of a stored VAE; how its latents are scaled follows from the transformer beside it."""
    shapes = Weights(file).shapes
    blocks = count(r"encoder\.down\.(\d+)\.", shapes)
    try:
        shown = {
            "block_out_channels": [shapes[RESNET.format(block, 0)][0] for block in range(blocks)],
            "layers_per_block": count(r"encoder\.down\.0\.block\.(\d+)\.", shapes),
            "latent_channels": shapes["encoder.conv_out.conv.weight"][0] // 2,
        }
    except KeyError as error:
        raise WeightsError(f"{file} has no tensor {error}; fetch it again") from error
    return CogVideoXVAEConfig.from_dict(
        {**shown, "scaling_factor": 0.7 if transformer.rotary else 1.15258426}
    )


def scheduler_config(transformer: CogVideoXConfig) -> dict[str, Any]:
    """The noise levels that go with a stored transformer, as diffusers writes them."""
    return {**SCHEDULER, "snr_shift_scale": 1.0 if transformer.rotary else 3.0}


def _describes_t5(file: Path) -> bool:
    return read_json(file).get("model_type") == "t5"


def _is_text_to_video(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this is a transformer that takes as many channels as it predicts; image-to-video takes more."""
    return {PATCHES, HEAD} <= set(shapes) and shapes[HEAD][0] == math.prod(shapes[PATCHES][1:])


KINDS = {  # of parts, by their tensors
    "transformer": _is_text_to_video,
    "VAE": {RESNET.format(0, 0)}.issubset,
}
