"""diffusers' own pipeline of the very same weights: the seconds to compare with, and the video."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bachvid.bench.clock import Took, peak_of
from bachvid.bench.subject import Subject
from bachvid.errors import UsageError
from bachvid.evaluate.cost import now
from bachvid.method.denoiser import Take
from bachvid.models.checkpoint import diffusers_names
from bachvid.models.cogvideox import CogVideoX
from bachvid.models.wan import Wan


def pipeline_of(subject: Subject) -> Any:
    """The pipeline of a subject, without text encoder; its denoiser shares our weights in memory."""
    try:
        import diffusers
        from accelerate import init_empty_weights
    except ImportError as error:
        raise UsageError(
            f"{error.name} is not installed, and the other pipeline needs it. Install bachvid[bench], or "
            "leave out --beside-diffusers."
        ) from error
    checkpoint, model = subject.checkpoint, subject.denoiser.model
    assert isinstance(model, CogVideoX | Wan)
    kinds = {part: getattr(diffusers, checkpoint.index[part][1]) for part in ("transformer", "vae")}
    with init_empty_weights():  # of the autoencoder only the numbers are asked for
        parts = {
            "transformer": kinds["transformer"].from_config(checkpoint.config.to_dict()),
            "vae": kinds["vae"].from_config(checkpoint.vae_config.to_dict()),
        }
    parts["transformer"].load_state_dict(diffusers_names(model), assign=True)
    parts["transformer"].to(subject.device)  # its tables are no weights
    parts["vae"].to_empty(device=subject.device)
    scheduler = getattr(diffusers, checkpoint.scheduler["_class_name"]).from_config(checkpoint.scheduler)
    kind = getattr(diffusers, checkpoint.index["_class_name"])
    pipeline = kind(tokenizer=None, text_encoder=None, scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def follow(pipeline: Any, subject: Subject, take: Take) -> tuple[Took, Tensor]:
    """What the steps of a video take there, but for the first, and the latents that it makes.

    `take` stands before its first step; its generator goes on to serve their solver.
    """
    (width, height), ends, made = subject.size, list[float](), list[Tensor]()

    def note(*_: Any) -> dict[str, Any]:
        ends.append(now(subject.device))
        return {}

    def make() -> None:
        torch.set_rng_state(take.generator.get_state())  # Wan's pipeline lends its solver no other chance
        video = pipeline(
            prompt_embeds=take.prompt.text,
            negative_prompt_embeds=subject.denoiser.negative,
            latents=take.latents,
            width=width,
            height=height,
            num_frames=subject.frames,
            num_inference_steps=subject.denoiser.steps,
            guidance_scale=subject.denoiser.scale,
            generator=take.generator,
            callback_on_step_end=note,
            output_type="latent",
        )
        made.append(video.frames)

    with torch.random.fork_rng():
        peak = peak_of(make, subject.device)
    return Took([end - before for before, end in pairwise(ends)], peak), made[0]
