"""How the families differ in training, and nothing else: what is built, how it begins, what it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bachvid.models.cogvideox import CogVideoX, CogVideoXConfig, ModulatedNorm
from bachvid.models.cogvideox_vae import CogVideoXVAE, CogVideoXVAEConfig
from bachvid.models.cogvideox_vae_layers import Resnet
from bachvid.models.sat import SCHEDULER as COGVIDEOX_SCHEDULER
from bachvid.models.wan import Block, Wan, WanConfig
from bachvid.models.wan_vae import WanVAE, WanVAEConfig
from bachvid.models.wan_vae_layers import Residual
from bachvid.sampling.flow_schedule import shifted
from bachvid.sampling.schedule import cogvideox_alphas_cumprod

AnyVAE = CogVideoXVAE | WanVAE
AnyDiT = CogVideoX | Wan
QUIET = -4.0  # the log-variance that an untrained encoder gives


class Lesson(NamedTuple):
    """What a denoiser is shown, and what it should answer."""

    noisy: Tensor  # like latents
    t: Tensor  # B
    answer: Tensor  # like latents


class Family(ABC):
    """CogVideoX, or Wan."""

    pipeline: ClassVar[str]  # what diffusers calls it
    scheduler: ClassVar[Mapping[str, Any]]  # that its shipped model is sampled with
    channels: ClassVar[int]  # the axis of the channels in a batch of latents
    reads_text: ClassVar[str]  # the kind of site where video meets text

    @abstractmethod
    def vae(self, config: Any) -> AnyVAE:
        """An untrained autoencoder through which colours pass, its latents nearly certain."""

    @abstractmethod
    def latent_layers(self, vae: Any) -> Iterable[nn.Module]:
        """What makes the latents: to be left alone once a denoiser has begun to learn them."""

    @abstractmethod
    def normalised(self, config: Any, measured: Mapping[str, Any]) -> Any:
        """The autoencoder's config that brings latents as `VAETask.inspect` found them to a spread of 1."""

    @abstractmethod
    def dit(self, config: Any) -> AnyDiT:
        """An untrained denoiser: every gate and the head are closed, so it predicts nothing."""

    @abstractmethod
    def lesson(self, latents: Tensor, noise: Tensor, share: Tensor) -> Lesson:
        """Latents and as much noise that the model's time is at `share` (B,), in [0, 1), of its way."""


class CogVideoXFamily(Family):
    """v-prediction on the noise levels of the 5B models."""

    pipeline = "CogVideoXPipeline"
    scheduler: ClassVar[Mapping[str, Any]] = {
        **COGVIDEOX_SCHEDULER,
        "_class_name": "CogVideoXDPMScheduler",  # its fresh noise mends what a small model gets wrong
    }
    channels = 2
    reads_text = "joint"

    def __init__(self) -> None:
        self.alphas_cumprod = cogvideox_alphas_cumprod()

    @torch.no_grad()
    def vae(self, config: CogVideoXVAEConfig) -> CogVideoXVAE:
        model = CogVideoXVAE(config)
        zero(module.conv2 for module in model.modules() if isinstance(module, Resnet))
        quieten(model.encoder.conv_out, config.latent_channels)
        return model

    def latent_layers(self, vae: CogVideoXVAE) -> Iterable[nn.Module]:
        return (vae.encoder,)

    def normalised(self, config: CogVideoXVAEConfig, measured: Mapping[str, Any]) -> CogVideoXVAEConfig:
        return replace(config, scaling_factor=round(1 / measured["latent_std"], 5))

    @torch.no_grad()
    def dit(self, config: CogVideoXConfig) -> CogVideoX:
        model = CogVideoX(config)
        zero(module.modulation for module in model.modules() if isinstance(module, ModulatedNorm))
        zero((model.head_norm.modulation, model.head))
        return model

    def lesson(self, latents: Tensor, noise: Tensor, share: Tensor) -> Lesson:
        t = (share * len(self.alphas_cumprod)).long()
        noisy, velocity = add_noise(latents, noise, self.alphas_cumprod.to(latents.device)[t])
        return Lesson(noisy, t, velocity)


class WanFamily(Family):
    """Rectified flow, its noise levels shifted by 3."""

    pipeline = "WanPipeline"
    scheduler: ClassVar[Mapping[str, Any]] = {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "solver_order": 2,
        "solver_type": "midpoint",
        "algorithm_type": "sde-dpmsolver++",  # as above
        "final_sigmas_type": "zero",
    }
    channels = 1
    reads_text = "cross"

    @torch.no_grad()
    def vae(self, config: WanVAEConfig) -> WanVAE:
        model = WanVAE(config)
        zero(module.residual[6] for module in model.modules() if isinstance(module, Residual))
        quieten(model.conv1, config.z_dim)
        return model

    def latent_layers(self, vae: WanVAE) -> Iterable[nn.Module]:
        return vae.encoder, vae.conv1

    def normalised(self, config: WanVAEConfig, measured: Mapping[str, Any]) -> WanVAEConfig:
        means, spreads = measured["channel_means"], measured["channel_stds"]
        return replace(config, latents_mean=tuple(means), latents_std=tuple(spreads))

    @torch.no_grad()
    def dit(self, config: WanConfig) -> Wan:
        model = Wan(config)
        zero((model.time_projection[-1], model.head.head))
        for block in model.modules():
            if isinstance(block, Block):
                block.modulation.zero_()
                zero((block.cross_attn.o,))  # attention to the text has no gate
        return model

    def lesson(self, latents: Tensor, noise: Tensor, share: Tensor) -> Lesson:
        sigma = shifted(share, self.scheduler["flow_shift"])
        mixed = sigma.view(-1, *[1] * (latents.ndim - 1)).to(latents.dtype)
        return Lesson((1 - mixed) * latents + mixed * noise, 1000 * sigma, noise - latents)


COGVIDEOX, WAN = CogVideoXFamily(), WanFamily()


def family_of(config: Any) -> Family:
    """The family that a denoiser's or an autoencoder's config belongs to."""
    return WAN if isinstance(config, WanConfig | WanVAEConfig) else COGVIDEOX


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the velocity to predict, both (B, ...) like latents, at signal shares (B,)."""
    alphas_cumprod = alphas_cumprod.view(-1, *[1] * (latents.ndim - 1))
    signal, spread = alphas_cumprod.sqrt().to(latents.dtype), (1 - alphas_cumprod).sqrt().to(latents.dtype)
    return signal * latents + spread * noise, signal * noise - spread * latents


def zero(layers: Iterable[Any]) -> None:
    """Make layers give nothing but zeros."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.zero_()


def quieten(layer: Any, channels: int) -> None:
    """Make a layer that gives `channels` means and as many log-variances give small variances."""
    weight, bias = layer.parameters()
    weight[channels:] = 0
    bias[channels:] = QUIET
