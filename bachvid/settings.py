"""Settings of a run: every value and where it came from, decided before any long work."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bachvid.errors import UsageError
from bachvid.method.recipe import MODES, PRESETS, Recipe, load_preset
from bachvid.models.checkpoint import Checkpoint
from bachvid.sampling.sampler import read_sampler

SOURCES = ("lockstep", "replay", "cache")
SOLVERS = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """What one run will do."""

    recipe: Recipe
    scheduler: dict[str, Any]  # as in scheduler_config.json
    steps: int
    guidance: float
    dynamic_guidance: bool
    negative: str
    seed: int
    size: tuple[int, int]  # width, height in pixels
    frames: int
    fps: int
    source: str
    dtype: torch.dtype
    device: torch.device
    vae_tiling: bool
    origins: dict[str, str]  # where each value came from

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`, each with its origin."""
        return {
            name: {"value": _plain(getattr(self, name)), "from": origin}
            for name, origin in self.origins.items()
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `Settings`; Wan's and diffusers' spellings are accepted beside ours."""
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    flag("--mode", choices=MODES, help="share both, only fg or bg, or nothing (off: vanilla videos)")
    flag("--source", choices=SOURCES, help="how the identity's keys reach the other videos: lockstep")
    flag("--seed", "--base_seed", type=int, help="of the noise: 42")
    flag(
        "--own-noise",
        action="store_true",
        default=None,
        help="another seed for every video: seed, seed + 1, ...",
    )
    flag("--steps", "--sample_steps", "--num_inference_steps", type=int, metavar="N", help="denoising steps")
    flag(
        "--guidance",
        "--sample_guide_scale",
        "--guidance_scale",
        type=float,
        metavar="G",
        help="guidance scale",
    )
    flag(
        "--dynamic-guidance", "--use_dynamic_cfg", action=switch, help="CogVideoX's oscillating guidance: off"
    )
    flag("--solver", "--sample_solver", choices=SOLVERS, help="instead of the checkpoint's own")
    flag("--negative", "--negative_prompt", metavar="TEXT", help="negative prompt: empty")
    flag("--size", metavar="WxH", help="in pixels, such as 720x480")
    flag("--frames", "--frame_num", "--num_frames", type=int, metavar="N", help="8k + 1")
    flag("--fps", type=int, metavar="N", help="written to the files; the model's own is best")
    flag("--preset", metavar="NAME|FILE", help=f"the recipe: {', '.join(PRESETS)}, or a preset.json")
    flag("--dtype", choices=DTYPES, help="of the denoiser")
    flag("--device", help="cpu, cuda, cuda:1, mps; the fastest there is")
    flag(
        "--vae-tiling", action=switch, help="decode in tiles, which takes less memory and changes pixels: off"
    )


def resolve(args: argparse.Namespace, checkpoint: Checkpoint, folder: Path) -> Settings:
    """Every setting, a flag before the checkpoint's own files before its preset; UsageError for a misfit."""
    origins: dict[str, str] = {}

    def first(name: str, **candidates: Any) -> Any:
        origins[name], value = next((o, v) for o, v in candidates.items() if v is not None)
        return value

    config = checkpoint.config
    recipe = first("recipe", flag=_named_preset(args.preset), preset=_own_preset(checkpoint, folder))
    device = first("device", flag=_device(args.device), default=best_device())
    settings = Settings(
        recipe=_adjusted(recipe, args),
        scheduler=first(
            "scheduler", flag=_solver(args.solver, checkpoint), checkpoint=dict(checkpoint.scheduler)
        ),
        steps=first("steps", flag=args.steps, preset=recipe.steps),
        guidance=first("guidance", flag=args.guidance, preset=recipe.guidance),
        dynamic_guidance=first("dynamic_guidance", flag=args.dynamic_guidance, default=False),
        negative=first("negative", flag=args.negative, default=""),
        seed=first("seed", flag=args.seed, default=42),
        size=first("size", flag=_size(args.size), checkpoint=_native_size(checkpoint)),
        frames=first("frames", flag=args.frames, checkpoint=config.sample_frames),
        fps=first("fps", flag=args.fps, checkpoint=_native_fps(checkpoint)),
        source=first("source", flag=args.source, default="lockstep"),
        dtype=first("dtype", flag=DTYPES.get(args.dtype), default=best_dtype(device, checkpoint)),
        device=device,
        vae_tiling=first("vae_tiling", flag=args.vae_tiling, default=False),
        origins=origins,
    )
    _check(settings, checkpoint)
    return settings


def best_device() -> torch.device:
    """The fastest device of this machine."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """float32 on a CPU; elsewhere what the checkpoint was trained in: float16 for 2B, else bfloat16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if checkpoint.config.rotary else torch.float16


def _own_preset(checkpoint: Checkpoint, folder: Path) -> Recipe:
    """The `preset.json` beside the weights, or the paper's numbers for the model they are for."""
    if (folder / "preset.json").is_file():
        return load_preset(folder / "preset.json")
    return PRESETS["paper-cogvideox-5b"].scaled_to(checkpoint.config.layers, 42)


def _named_preset(name: str | None) -> Recipe | None:
    if name is None or name in PRESETS:
        return PRESETS[name] if name else None
    if Path(name).is_file():
        return load_preset(Path(name))
    raise UsageError(
        f"There is no preset {name!r}. Use one of {', '.join(PRESETS)}, or the path of a preset.json."
    )


def _adjusted(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    if args.mode:
        recipe = replace(recipe, mode=args.mode)
    return replace(recipe, shared_noise=False) if args.own_noise else recipe


def _solver(name: str | None, checkpoint: Checkpoint) -> dict[str, Any] | None:
    return {**checkpoint.scheduler, "_class_name": SOLVERS[name]} if name else None


def _device(name: str | None) -> torch.device | None:
    if name in (None, "auto"):
        return None
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"The device {name!r} is not usable here. Use {best_device().type!r}.") from error


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)\s*[xX*]\s*(\d+)", text)
    if not found:
        raise UsageError(f"The size {text!r} is not WIDTHxHEIGHT. Write it like 720x480.")
    return int(found[1]), int(found[2])


def _native_size(checkpoint: Checkpoint) -> tuple[int, int]:
    config, scale = checkpoint.config, checkpoint.vae_config.spatial_compression_ratio
    if config.patch_frames:  # 1.5 stores the reach of its positions, not a size it was trained on
        return 1360, 768
    return config.sample_width * scale, config.sample_height * scale


def _native_fps(checkpoint: Checkpoint) -> int:
    """Two latent frames a second, or four in 1.5, whatever the number of frames that share a latent."""
    config = checkpoint.config
    return max(1, (4 if config.patch_frames else 2) * config.temporal_compression)


def _check(settings: Settings, checkpoint: Checkpoint) -> None:
    """Raise UsageError for numbers that this checkpoint cannot take, naming the nearest that it can."""
    step = checkpoint.vae_config.spatial_compression_ratio * checkpoint.config.patch
    width, height = settings.size
    if width % step or height % step or not width or not height:
        near = "x".join(str(max(step, round(n / step) * step)) for n in settings.size)
        raise UsageError(
            f"--size {width}x{height} does not fit: both must be multiples of {step}. Use {near}."
        )
    frames, unit = settings.frames, 2 * checkpoint.config.temporal_compression
    longest = 161 if checkpoint.config.patch_frames else checkpoint.config.sample_frames
    if (frames - 1) % unit or not 1 <= frames <= longest:
        nearest = min(max(1, round((frames - 1) / unit) * unit + 1), longest)
        raise UsageError(
            f"--frames {frames} does not fit: {unit}k + 1, and at most {longest}. Use {nearest}."
        )
    train_steps = int(settings.scheduler.get("num_train_timesteps", 1000))
    if not 1 <= settings.steps <= train_steps:
        raise UsageError(
            f"--steps {settings.steps} does not fit: 1 to {train_steps}. Use {settings.recipe.steps}."
        )
    if _ends_in_noise(settings, settings.steps):
        fine = next(n for n in range(settings.steps, 0, -1) if not _ends_in_noise(settings, n))
        raise UsageError(f"--steps {settings.steps} makes the schedule end in a step of noise. Use {fine}.")


def _ends_in_noise(settings: Settings, steps: int) -> bool:
    """Whether the schedule overshoots by one step, as it does for 62 numbers of steps (61, 103, ...)."""
    return read_sampler(settings.scheduler, steps).schedule.timesteps[-1] < 0


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.to_dict()
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | bool | int | float | dict) else str(value)
