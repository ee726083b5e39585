"""The original release of Wan2.1: its tensors tell what they are, whatever their files are called.

So do those of ComfyUI's files, one for each part: only their UMT5 has other names, transformers', and carries
its tokenizer with it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bachvid.models.layouts import TOKENIZER, Layout, t5_encoder
from bachvid.models.text import Tokenizer, WanTextEncoder, tokenizer_file
from bachvid.models.wan import CHECKPOINTS, WanConfig
from bachvid.models.wan_vae import WanVAEConfig
from bachvid.models.weights import (
    PICKLED,
    SAFE,
    Weights,
    WeightsError,
    count,
    files_in,
    find_kinds,
    only,
    read_json,
)

PATCHES = "patch_embedding.weight"
TOKENS = "token_embedding.weight"
_BLOCK = "encoder.block.{}.layer."  # of UMT5, by its name in transformers
_BIAS = _BLOCK + "0.SelfAttention.relative_attention_bias.weight"
KINDS = {  # of parts, by tensors that they have
    "transformer": {PATCHES, "blocks.0.self_attn.q.weight"}.issubset,
    "VAE": {"encoder.downsamples.0.residual.0.gamma"}.issubset,
    "UMT5": lambda names: TOKENS in names or _BIAS.format(1) in names,  # a T5 has one bias for all its blocks
}
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")  # in the names of files that are one set of weights together

SCHEDULER = {  # what the release's own program samples with
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 5.0,
    "sigma_rule": "original",
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "lower_order_final": True,
    "final_sigmas_type": "zero",
}

UMT5_ORIGINAL = Layout(
    {
        "shared.*": "token_embedding.*",
        _BLOCK + "0.layer_norm.*": "blocks.{}.norm1.*",
        _BLOCK + "0.SelfAttention.relative_attention_bias.*": "blocks.{}.pos_embedding.embedding.*",
        _BLOCK + "0.SelfAttention.*": "blocks.{}.attn.*",
        _BLOCK + "1.layer_norm.*": "blocks.{}.norm2.*",
        _BLOCK + "1.DenseReluDense.wi_0.*": "blocks.{}.ffn.gate.0.*",
        _BLOCK + "1.DenseReluDense.wi_1.*": "blocks.{}.ffn.fc1.*",
        _BLOCK + "1.DenseReluDense.wo.*": "blocks.{}.ffn.fc2.*",
        "encoder.final_layer_norm.*": "norm.*",
    }
)


class Parts(NamedTuple):
    transformer: Path  # a file, or a folder of shards
    config: WanConfig
    vae: Path
    text: Weights


def find_parts(folder: Path) -> Parts | None:
    """The parts of a text-to-video Wan, at most two levels down, by contents; None without a transformer."""
    found = find_kinds(_sets_of_weights(folder), KINDS)
    if not found["transformer"]:
        return None
    reject_pair(folder, found["transformer"])
    transformer = only(found["transformer"], "transformer", folder, "the release's")
    config = transformer_config(transformer)  # image-to-video is told before that any part is missing
    vae = only(found["VAE"], "VAE", folder, "Wan2.1_VAE.pth")
    text = Weights(only(found["UMT5"], "UMT5", folder, "models_t5_umt5-xxl-enc-bf16.pth"))
    _tokenizer_of(text)  # there is one
    return Parts(transformer, config, vae, text)


def reject_pair(folder: Path, transformers: Sequence[Path]) -> None:
    """Raise WeightsError for Wan2.2's denoisers, or one of the two: inside, it looks like a Wan2.1."""
    names = {part for path in transformers for part in path.relative_to(folder).parts} | {folder.name}
    if half := names & {"high_noise_model", "low_noise_model"}:
        raise WeightsError(f"{folder} is a Wan2.2 ({min(half)}), which has two denoisers; give a Wan2.1")


def transformer_config(path: Path) -> WanConfig:
    """The numbers of a stored transformer: what its shapes show; how many heads, the config beside it."""
    shapes = Weights(path).shapes
    width, channels, *patch = shapes[PATCHES]
    beside = (path if path.is_dir() else path.parent) / "config.json"
    head_width = CHECKPOINTS["wan2.1-t2v-1.3b"].head_width
    heads = read_json(beside).get("num_heads") if beside.is_file() else None
    try:
        config = WanConfig(
            layers=count(r"blocks\.(\d+)\.", shapes),
            heads=heads or width // head_width,
            head_width=width // heads if heads else head_width,
            inner=shapes["blocks.0.ffn.0.weight"][0],
            channels=channels,
            patch=(patch[0], patch[1], patch[2]),
            text_width=shapes["text_embedding.0.weight"][1],
            time_features=shapes["time_embedding.0.weight"][1],
            text_norm="blocks.0.norm3.weight" in shapes,
            longest=1024,
        )
        out = shapes["head.head.weight"][0]
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{path} has no tensor {error}; fetch it again") from error
    if out != channels * patch[0] * patch[1] * patch[2]:
        raise WeightsError(
            f"{path} takes other channels than it predicts; only text-to-video checkpoints are supported"
        )
    return config


def vae_config(path: Path) -> WanVAEConfig:
    """The numbers of a stored VAE, as its shapes show them; the normalisation is the published one."""
    shapes = Weights(path).shapes
    resampled = r"encoder.downsamples.{}.resample.1.weight".format
    downsamples = range(count(r"encoder\.downsamples\.(\d+)\.", shapes))
    resamples = [n for n in downsamples if resampled(n) in shapes]
    try:
        base, last = shapes["encoder.conv1.weight"][0], shapes["encoder.head.0.gamma"][0]
        shown = {
            "base_dim": base,
            "z_dim": shapes["conv2.weight"][0],
            "dim_mult": [*(shapes[resampled(n)][0] // base for n in resamples), last // base],
            "num_res_blocks": next(iter(resamples), 0),
            "temperal_downsample": [f"encoder.downsamples.{n}.time_conv.weight" in shapes for n in resamples],
        }
    except (KeyError, IndexError) as error:
        raise WeightsError(f"{path} has no tensor {error}; fetch it again") from error
    return WanVAEConfig.from_dict(shown)


def text_config(weights: Weights) -> dict[str, Any]:
    """What transformers' `config.json` would say of a stored UMT5."""
    layout = _text_layout(weights.shapes)

    def shape(name: str) -> tuple[int, ...]:
        return weights.shapes[layout.source(name).name]

    try:
        heads = shape(_BIAS.format(0))[1]
        return {
            "model_type": WanTextEncoder.kind,
            "vocab_size": shape("shared.weight")[0],
            "d_model": shape("shared.weight")[1],
            "d_kv": shape(_BLOCK.format(0) + "0.SelfAttention.q.weight")[0] // heads,
            "d_ff": shape(_BLOCK.format(0) + "1.DenseReluDense.wo.weight")[1],
            "num_layers": count(r"(?:encoder\.block|blocks)\.(\d+)\.", weights.shapes),
            "num_heads": heads,
            "feed_forward_proj": "gated-gelu",
        }
    except KeyError as error:
        raise WeightsError(f"{weights.path} has no tensor {error}; fetch it again") from error


def open_text(path: Path, length: int, dtype: torch.dtype, device: torch.device | str) -> WanTextEncoder:
    """A stored UMT5 with the tokenizer that it carries, or that lies beside it."""
    weights = Weights(path)
    settings, layout = text_config(weights), _text_layout(weights.shapes)
    tokenizer = Tokenizer(_tokenizer_of(weights))
    return WanTextEncoder.stored(tokenizer, settings, weights, layout, length, dtype, device)


def _text_layout(names: Container[str]) -> Layout:
    """The names in a stored UMT5: the release's, or transformers'."""
    return UMT5_ORIGINAL if TOKENS in names else t5_encoder(names)


def _sets_of_weights(folder: Path) -> Iterator[Path]:
    """Every pickled file, every safetensors file that stands alone, and every folder of shards."""
    for inside in (folder, *sorted(path for path in folder.glob("*/") if path.is_dir())):
        safe = files_in(inside, SAFE)
        sharded = list(inside.glob("*.index.json")) or any(SHARD.search(file.name) for file in safe)
        yield from [inside] if sharded else safe
        yield from files_in(inside, PICKLED)


def _tokenizer_of(text: Weights) -> Path:
    """The file with the tokenizer: the text encoder's own, or one in its folder or below."""
    if TOKENIZER in text.shapes:
        return text.path
    folder, names = text.path.parent, ("spiece.model", "tokenizer.json")
    found = sorted({path.parent for name in names for path in folder.rglob(name)})
    return tokenizer_file(only(found, "tokenizer", folder, "google/umt5-xxl of the release"))
