"""Tiny random checkpoints, made by diffusers and transformers, for the tests to read."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers import CogVideoXTransformer3DModel as Transformer
from diffusers import WanTransformer3DModel as WanTransformer
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer, UMT5Config, UMT5EncoderModel

# One of each kind: added positions (2B), rotary (5B), rotary over patches of two frames (1.5).
KINDS: dict[str, dict[str, Any]] = {
    "2b": {},
    "5b": {"use_rotary_positional_embeddings": True},
    "1.5": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_height": 20,
        "sample_width": 20,
    },
}
SCHEDULER = {  # of every published checkpoint; the 2B shifts by 3
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "snr_shift_scale": 1.0,
}
TEXT_LENGTH = 12
SENTENCES = [
    "a red fox in a small kitchen stands facing the camera, calm, full upper body in view.",
    "the old woman with a blue apron shapes a bowl on the spinning wheel of a sunlit pottery studio.",
    "wooden shelves, clay pots and a large window; she opens the window and looks outside.",
    "the dog in the garden runs; a café, a fine day, 10 birds: they sing.",
]


def train_tokenizer(folder: Path, **options: Any) -> None:
    """Write a `spiece.model` with T5's special ids, of a vocabulary that knows a few words whole."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, words = random.Random(0), " ".join(SENTENCES).split()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(rng.choices(words, k=10)) for _ in range(500)]),
        model_prefix=str(folder / "spiece"),
        **{
            "vocab_size": 85,
            "pad_id": 0,
            "eos_id": 1,
            "unk_id": 2,
            "bos_id": -1,
            "minloglevel": 2,
            **options,
        },
    )
    (folder / "spiece.vocab").unlink()


def randomised(model: Any) -> Any:
    """The model with every parameter random: the zeros and ones that models start with hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
        nn.init.normal_(parameter, std=scale, generator=generator)
    return model.eval()


def transformer(kind: str, **settings: Any) -> Transformer:
    numbers = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "num_layers": 2, "time_embed_dim": 8, "text_embed_dim": 32, "max_text_seq_length": TEXT_LENGTH,
        "sample_width": 10, "sample_height": 6, "sample_frames": 9, **KINDS[kind], **settings,
    }  # fmt: skip
    return randomised(Transformer(**numbers))


def wan_transformer(**settings: Any) -> WanTransformer:
    numbers = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4,
        "out_channels": 4, "text_dim": 12, "freq_dim": 10, "ffn_dim": 40, "num_layers": 2,
        "cross_attn_norm": True, "rope_max_seq_len": 32, **settings,
    }  # fmt: skip
    return randomised(WanTransformer(**numbers))


def wan_original_name(name: str) -> str:
    """What the original release calls a tensor of diffusers' Wan transformer."""
    for theirs, original in WAN_NAMES.items():
        name = re.sub(theirs, original, name)
    return name


WAN_NAMES = {  # in this order, as patterns
    r"condition_embedder\.time_embedder\.linear_1": "time_embedding.0",
    r"condition_embedder\.time_embedder\.linear_2": "time_embedding.2",
    r"condition_embedder\.time_proj": "time_projection.1",
    r"condition_embedder\.text_embedder\.linear_1": "text_embedding.0",
    r"condition_embedder\.text_embedder\.linear_2": "text_embedding.2",
    r"^scale_shift_table": "head.modulation",
    r"^proj_out": "head.head",
    r"\.scale_shift_table": ".modulation",
    r"\.attn1": ".self_attn",
    r"\.attn2": ".cross_attn",
    r"\.to_out\.0": ".o",
    r"\.to_([qkv])\.": r".\1.",
    r"\.norm2\.": ".norm3.",
    r"\.ffn\.net\.0\.proj": ".ffn.0",
    r"\.ffn\.net\.2": ".ffn.2",
}


def vae(**settings: Any) -> AutoencoderKLCogVideoX:
    numbers = {
        "block_out_channels": (4, 8, 8, 16), "norm_num_groups": 4, "latent_channels": 4,
        "layers_per_block": 1, "sample_height": 32, "sample_width": 48, **settings,
    }  # fmt: skip
    blocks = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    }
    return randomised(AutoencoderKLCogVideoX(**blocks, **numbers))


def t5(model: type[nn.Module] = T5EncoderModel) -> Any:
    config = T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return randomised(model(config))


def umt5(**settings: Any) -> UMT5EncoderModel:
    numbers = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return randomised(UMT5EncoderModel(UMT5Config(**{**numbers, **settings})))


def pipeline(tokenizer: Path, kind: str = "5b") -> CogVideoXPipeline:
    return CogVideoXPipeline(
        tokenizer=T5Tokenizer.from_pretrained(tokenizer, extra_ids=0),
        text_encoder=t5(),
        vae=vae(),
        transformer=transformer(kind),
        scheduler=CogVideoXDDIMScheduler(**SCHEDULER),
    )


def wan_vae(**settings: Any) -> AutoencoderKLWan:
    numbers = {
        "base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, **settings,
    }  # fmt: skip
    return randomised(AutoencoderKLWan(**numbers))


def wan_pipeline(tokenizer: Path, text_length: int = 40) -> WanPipeline:
    return WanPipeline(
        tokenizer=T5Tokenizer.from_pretrained(tokenizer, extra_ids=0, model_max_length=text_length),
        text_encoder=umt5(),
        vae=wan_vae(),
        transformer=wan_transformer(text_dim=32, in_channels=16, out_channels=16),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
    )


def sat_transformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformer of diffusers as the original release stores it; its conversion script undoes this."""
    renamed = {
        "patch_embed.": "mixins.patch_embed.",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "norm_final": "transformer.final_layernorm",
        "norm_out.linear": "mixins.final_layer.adaLN_modulation.1",
        "norm_out.norm": "mixins.final_layer.norm_final",
        "proj_out": "mixins.final_layer.linear",
    }
    out = {}
    for name, tensor in state.items():
        for theirs, sat in renamed.items():
            if name.startswith(theirs):
                out[sat + name.removeprefix(theirs)] = tensor
    for n in range(layers_of(state)):
        block, layer, mixin = f"transformer_blocks.{n}.", f"transformer.layers.{n}.", "mixins.adaln_layer."
        for end in ("weight", "bias"):
            qkv = [state[f"{block}attn1.to_{part}.{end}"] for part in "qkv"]
            out[f"{layer}attention.query_key_value.{end}"] = torch.cat(qkv)
            one, two = (state[f"{block}norm{i}.linear.{end}"].chunk(6) for i in (1, 2))
            modulation = torch.cat([*one[:3], *two[:3], *one[3:], *two[3:]])
            out[f"{mixin}adaLN_modulations.{n}.1.{end}"] = modulation
            out[f"{mixin}query_layernorm_list.{n}.{end}"] = state[f"{block}attn1.norm_q.{end}"]
            out[f"{mixin}key_layernorm_list.{n}.{end}"] = state[f"{block}attn1.norm_k.{end}"]
            out[f"{layer}attention.dense.{end}"] = state[f"{block}attn1.to_out.0.{end}"]
            out[f"{layer}input_layernorm.{end}"] = state[f"{block}norm1.norm.{end}"]
            out[f"{layer}post_attention_layernorm.{end}"] = state[f"{block}norm2.norm.{end}"]
            out[f"{layer}mlp.dense_h_to_4h.{end}"] = state[f"{block}ff.net.0.proj.{end}"]
            out[f"{layer}mlp.dense_4h_to_h.{end}"] = state[f"{block}ff.net.2.{end}"]
    return out


def sat_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE of diffusers as the original release stores it; its conversion script undoes this."""
    out = {}
    for name, tensor in state.items():
        name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{3 - int(found[1])}", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = name.replace("down_blocks.", "down.").replace("resnets.", "block.")
        name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        out[name.replace("conv_shortcut", "nin_shortcut")] = tensor
    return out


def layers_of(state: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("transformer_blocks.")})
