"""The published models at full size, as shapes, under every name they have: pytest tests/test_full_size.py"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
import tiny
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from bachvid.models.cogvideox import CHECKPOINTS, CogVideoX
from bachvid.models.cogvideox_vae import CogVideoXVAE, CogVideoXVAEConfig
from bachvid.models.layouts import (
    COGVIDEOX_DIFFUSERS,
    COGVIDEOX_SAT,
    COGVIDEOX_VAE_DIFFUSERS,
    COGVIDEOX_VAE_SAT,
    TOKENIZER,
    Layout,
    t5_encoder,
)

# What the published config.json files say beside diffusers' defaults.
ROTARY = {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True}
PUBLISHED = {
    "cogvideox-2b": {},
    "cogvideox-5b": ROTARY,
    "cogvideox1.5-5b": {
        **ROTARY, "patch_size_t": 2, "patch_bias": False,
        "sample_height": 300, "sample_width": 300, "sample_frames": 81,
    },
}  # fmt: skip
SIZES = {
    "cogvideox-2b": (736, 1_693_783_872),
    "cogvideox-5b": (1024, 5_570_283_072),
    "cogvideox1.5-5b": (1024, 5_570_676_352),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_transformers_have_the_published_tensors_under_both_names(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = CogVideoX(CHECKPOINTS[name]), CogVideoXTransformer3DModel(**PUBLISHED[name])
    assert (len(dict(ours.named_parameters())), count(ours)) == SIZES[name]
    check_layout(COGVIDEOX_DIFFUSERS, ours, theirs.state_dict())
    check_layout(COGVIDEOX_SAT, ours, tiny.sat_transformer(theirs.state_dict()))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_configs_are_those_of_diffusers(name: str) -> None:
    with torch.device("meta"):
        theirs = CogVideoXTransformer3DModel(**PUBLISHED[name])
    ours = CHECKPOINTS[name]
    assert type(ours).from_dict(theirs.config) == ours
    # And back: the config we write builds the same network there.
    with torch.device("meta"):
        again = CogVideoXTransformer3DModel.from_config(ours.to_dict())
    assert shapes(again.state_dict()) == shapes(theirs.state_dict())


def test_vae_has_the_published_tensors_under_both_names() -> None:
    with torch.device("meta"):
        ours, theirs = CogVideoXVAE(CogVideoXVAEConfig.from_dict({})), AutoencoderKLCogVideoX(**VAE)
    assert (len(dict(ours.named_parameters())), count(ours)) == (436, 215_583_907)
    check_layout(COGVIDEOX_VAE_DIFFUSERS, ours, theirs.state_dict())
    check_layout(COGVIDEOX_VAE_SAT, ours, tiny.sat_vae(theirs.state_dict()))


def test_text_encoder_has_the_published_tensors_under_either_name() -> None:
    xxl = T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = T5EncoderModel(xxl)
    assert count(model) == 4_762_310_656
    stored = model.state_dict()
    stored["decoder.final_layer_norm.weight"] = torch.empty(4096)  # of a whole T5
    assert {"shared.weight", "encoder.embed_tokens.weight"} <= set(stored)
    stored[TOKENIZER] = torch.empty(4_548_313)  # as in the files of ComfyUI
    check_layout(t5_encoder(stored), model, stored)
    del stored["shared.weight"]
    check_layout(t5_encoder(stored), model, stored)


VAE = {
    "block_out_channels": (128, 256, 256, 512),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "latent_channels": 16,
}


def check_layout(layout: Layout, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Every stored block of rows is used once, every parameter is found, and the shapes fit."""
    used: Counter[tuple[str, int]] = Counter()
    blocks = {}
    for name, parameter in model.named_parameters():
        source = layout.source(name)
        used.update((source.name, block) for block in source.blocks)
        blocks[source.name] = source.of
        first, *rest = stored[source.name].shape
        assert parameter.shape == (first // source.of * len(source.blocks), *rest), name
    kept = [name for name in stored if layout.keeps(name)]
    expected = [(name, block) for name in kept for block in range(blocks[name])]
    assert used == Counter(expected)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
