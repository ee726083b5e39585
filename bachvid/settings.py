"""Settings of a run: every value and where it came from, decided before any long work."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bachvid.errors import UsageError
from bachvid.method.recipe import MODES, PRESETS, Recipe, load_preset, own_recipe
from bachvid.models.checkpoint import Checkpoint, WeightsError
from bachvid.models.parts import Format
from bachvid.sampling.sampler import read_sampler

SOURCES = ("lockstep", "replay", "cache")
_DPM = "DPMSolverMultistepScheduler"
SOLVERS: dict[str, dict[str, dict[str, Any]]] = {  # of each family, in the words of scheduler_config.json
    "cogvideox": {
        "ddim": {"_class_name": "CogVideoXDDIMScheduler"},
        "dpm": {"_class_name": "CogVideoXDPMScheduler"},
    },
    "wan": {
        "unipc": {"_class_name": "UniPCMultistepScheduler"},
        "dpm++": {"_class_name": _DPM, "algorithm_type": "dpmsolver++"},
        "dpm++sde": {"_class_name": _DPM, "algorithm_type": "sde-dpmsolver++"},
        "euler": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    },
}
ORIGINAL_RULES = {  # where Wan's own programs place noise levels; Euler, which they have not, as diffusers
    "unipc": "original",
    "dpm++": "original-dpm++",
    "dpm++sde": "original-dpm++",
    "euler": "euler",
}
FASTEST = 240  # frames a second
SEEDS = 2**63 - 1024  # torch's end at 2^63, and the videos of a group count on from the first's
WORLD = ("dtype", "scheduler", "steps", "guidance", "dynamic_guidance", "negative", "size", "frames")
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
        timesteps = read_sampler(self.scheduler, self.steps).schedule.timesteps
        used = replace(self, recipe=self.recipe.at(timesteps))
        return {
            name: {"value": _plain(getattr(used, name)), "from": origin}
            for name, origin in self.origins.items()
        }

    def world(self) -> dict[str, Any]:
        """What a run must share to join an identity, beside the model."""
        told = self.to_dict()
        return {name: told[name]["value"] for name in WORLD}

    def chosen_world(self) -> dict[str, Any]:
        """The part of it that may be wrong with the right model, so that it is told before one is loaded."""
        return {name: value for name, value in self.world().items() if self.origins[name] != "checkpoint"}

    def joining(self, seed: int) -> Settings:
        """The same for who joins an identity: it is replayed, and lends its seed unless one was asked for."""
        lent: dict[str, Any] = {"source": "replay"}
        if self.origins["seed"] == "default":
            lent["seed"] = seed
        return replace(self, **lent, origins=self.origins | dict.fromkeys(lent, "identity"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `Settings`; Wan's and diffusers' spellings are accepted beside ours."""
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    flag("--mode", choices=MODES, help="share both, only fg or bg, or nothing (off: vanilla videos)")
    flag("--source", choices=SOURCES, help="how the identity's keys reach the others (default: lockstep)")
    flag("--seed", "--base_seed", type=int, help="seed of the noise (default: 42)")
    flag("--own-noise", action="store_true", default=None, help="seed, seed + 1, ... for the videos")
    flag("--steps", "--sample_steps", "--num_inference_steps", type=int, metavar="N", help="denoising steps")
    flag(
        "--guidance",
        "--sample_guide_scale",
        "--guidance_scale",
        type=float,
        metavar="G",
        help="guidance scale",
    )
    flag("--dynamic-guidance", "--use_dynamic_cfg", action=switch, help="CogVideoX's oscillating scale")
    solvers = [name for family in SOLVERS.values() for name in family]
    flag("--solver", "--sample_solver", choices=solvers, help="instead of the checkpoint's own")
    shifts = "shift of Wan's noise levels: 3 for 480p, 5 for 720p"
    flag("--shift", "--sample_shift", type=float, metavar="S", help=shifts)
    flag("--negative", "--negative_prompt", metavar="TEXT", help="negative prompt (default: none)")
    flag("--size", metavar="WxH", help="in pixels, such as 720x480")
    flag(
        "--frames",
        "--frame_num",
        "--num_frames",
        type=int,
        metavar="N",
        help="such as 8k + 1 of CogVideoX-5B, 4k + 1 of a Wan; the model's own",
    )
    flag("--fps", type=int, metavar="N", help="frames a second of the files (default: the model's own)")
    flag("--preset", metavar="NAME|FILE", help=f"the recipe: {', '.join(PRESETS)}, or a preset.json")
    flag("--dtype", choices=DTYPES, help="of the denoiser")
    flag("--device", help="cpu, cuda, cuda:1 or mps (default: the fastest there is)")
    flag("--vae-tiling", action=switch, help="decode in tiles: less memory, slightly other pixels")


def resolve(args: argparse.Namespace, checkpoint: Checkpoint, folder: Path) -> Settings:
    """Every setting, a flag before the checkpoint's own files before its preset; UsageError for a misfit."""
    origins: dict[str, str] = {}

    def first(name: str, **candidates: Any) -> Any:
        origins[name], value = next((o, v) for o, v in candidates.items() if v is not None)
        return value

    own = checkpoint.format
    beside = "preset" if (folder / "preset.json").is_file() else "paper"
    own_preset = _own_preset(args, checkpoint, folder)
    recipe = first("recipe", **{"flag": _named_preset(args.preset), beside: own_preset})
    changed = {"--mode": args.mode, "--own-noise": args.own_noise}
    origins["recipe"] = ", ".join([origins["recipe"], *(flag for flag, given in changed.items() if given)])
    device = first("device", flag=usable_device(args.device), default=best_device())
    settings = Settings(
        recipe=_adjusted(recipe, args),
        scheduler=first(
            "scheduler", flag=_scheduler(args, checkpoint), checkpoint=dict(checkpoint.scheduler)
        ),
        steps=first("steps", flag=args.steps, preset=recipe.steps),
        guidance=first("guidance", flag=args.guidance, preset=recipe.guidance),
        dynamic_guidance=first("dynamic_guidance", flag=args.dynamic_guidance, default=False),
        negative=first("negative", flag=args.negative, default=""),
        seed=first("seed", flag=args.seed, default=42),
        size=first("size", flag=read_size(args.size), checkpoint=own.size),
        frames=first("frames", flag=args.frames, checkpoint=own.frames),
        fps=first("fps", flag=args.fps, checkpoint=own.fps),
        source=first("source", flag=args.source, default="lockstep"),
        dtype=first("dtype", flag=DTYPES.get(args.dtype), default=best_dtype(device, checkpoint)),
        device=device,
        vae_tiling=first("vae_tiling", flag=args.vae_tiling, default=False),
        origins=origins,
    )
    if origins["scheduler"] == "checkpoint":
        _check_scheduler(settings.scheduler, folder)
    _check(settings, checkpoint)
    _check_sites(settings.recipe, checkpoint)
    return settings


def best_device() -> torch.device:
    """The fastest device of this machine."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """float32 on a CPU; elsewhere what the checkpoint was trained in."""
    if device.type == "cpu":
        return torch.float32
    return checkpoint.trained_dtype


def _own_preset(args: argparse.Namespace, checkpoint: Checkpoint, folder: Path) -> Recipe | None:
    """The recipe beside the weights; not looked at where another is named."""
    return None if args.preset else own_recipe(folder, checkpoint.family, checkpoint.config.layers)


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


def _scheduler(args: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The checkpoint's noise levels with another solver or shift; None if neither was asked for."""
    known, flow = SOLVERS[checkpoint.family], checkpoint.family == "wan"
    changes: dict[str, Any] = {}
    if args.solver:
        if args.solver not in known:
            raise UsageError(
                f"--solver {args.solver} does not fit a {checkpoint.family} model. Use {' or '.join(known)}."
            )
        changes |= known[args.solver]
        if checkpoint.scheduler.get("sigma_rule") == "original":  # Wan's own programs place levels by solver
            changes["sigma_rule"] = ORIGINAL_RULES[args.solver]
        changes |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True} if flow else {}
    if args.shift is not None:
        if not flow or not 0 < args.shift < math.inf:
            raise UsageError(
                f"--shift {args.shift:g} does not fit a {checkpoint.family} model. "
                "It is a number above 0, for Wan; leave it out."
            )
        changes |= {"flow_shift": args.shift, "shift": args.shift}  # each solver knows one of the names
    return {**checkpoint.scheduler, **changes} if changes else None


def usable_device(name: str | None) -> torch.device | None:
    """The device of this name; None for "auto", UsageError if it does not work here."""
    if name in (None, "auto"):
        return None
    try:
        torch.ones(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UsageError(f"The device {name!r} is not usable here. Use {best_device().type!r}.") from error


def read_size(text: str | None) -> tuple[int, int] | None:
    """Width and height of "720x480"; UsageError for other texts."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})\s*[xX*]\s*(\d{1,5})", text)
    if not found:
        raise UsageError(f"The size {text!r} is not WIDTHxHEIGHT. Write it like 720x480.")
    return int(found[1]), int(found[2])


def check_format(size: tuple[int, int], frames: int, own: Format) -> None:
    """Raise UsageError for videos that a checkpoint cannot make; it names the nearest that it can."""
    step = own.size_unit
    width, height = size
    if width % step or height % step or not width or not height:
        near = "x".join(str(max(step, round(n / step) * step)) for n in size)
        raise UsageError(
            f"--size {width}x{height} does not fit: both must be multiples of {step}. Use {near}."
        )
    if own.side and max(width, height) > own.side:
        near = "x".join(str(min(n, own.side // step * step)) for n in size)
        raise UsageError(
            f"--size {width}x{height} does not fit: this model's positions end at {own.side} pixels. "
            f"Use {near}."
        )
    unit, longest = own.frame_unit, own.longest
    if (frames - 1) % unit or not 1 <= frames <= longest:
        nearest = min(max(1, round((frames - 1) / unit) * unit + 1), longest)
        raise UsageError(
            f"--frames {frames} does not fit: {unit}k + 1, and at most {longest}. Use {nearest}."
        )


def _check(settings: Settings, checkpoint: Checkpoint) -> None:
    """Raise UsageError for numbers that a checkpoint cannot take; it names one that it can."""
    own = checkpoint.format
    check_format(settings.size, settings.frames, own)
    if not 1 <= settings.fps <= FASTEST:
        raise UsageError(f"--fps {settings.fps} does not fit: 1 to {FASTEST}. Use {own.fps}.")
    if not math.isfinite(settings.guidance):
        raise UsageError(
            f"--guidance {settings.guidance} does not fit: a number. Use {settings.recipe.guidance:g}."
        )
    if not 0 <= settings.seed < SEEDS:
        raise UsageError(f"--seed {settings.seed} does not fit: 0 to {SEEDS - 1}. Use 42.")
    if settings.vae_tiling:
        checkpoint.check_tiling()
    if settings.source == "cache" and settings.recipe.branches == "both":
        raise UsageError(
            "--source cache does not fit a recipe of both branches: it holds one. Use --source lockstep."
        )
    train_steps = int(settings.scheduler.get("num_train_timesteps", 1000))
    if not 1 <= settings.steps <= train_steps:
        raise UsageError(
            f"--steps {settings.steps} does not fit: 1 to {train_steps}. "
            f"Use {min(settings.recipe.steps, train_steps)}."
        )
    if _ends_in_noise(settings, settings.steps):
        fine = next(n for n in range(settings.steps, 0, -1) if not _ends_in_noise(settings, n))
        raise UsageError(f"--steps {settings.steps} makes the schedule end in a step of noise. Use {fine}.")


def _check_scheduler(scheduler: Mapping[str, Any], folder: Path) -> None:
    """Raise WeightsError, which names the file, for a checkpoint's own scheduler that cannot be read."""
    try:
        read_sampler(scheduler, 1)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{folder / 'scheduler' / 'scheduler_config.json'}: {error}") from error


def _check_sites(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """Raise UsageError for a recipe of another model: one that names a site which this one does not have."""
    named = {*recipe.mask_sites, *recipe.match_sites, *recipe.kv_sites}
    if missing := sorted(named - set(checkpoint.outline().sites)):
        site = " ".join(map(str, missing[0]))
        raise UsageError(
            f"The preset is for another model: this one, of {checkpoint.config.layers} layers, has no site "
            f"{site}. Leave --preset out, or name a preset.json of this model."
        )


def _ends_in_noise(settings: Settings, steps: int) -> bool:
    """Whether the schedule overshoots by one step, as it does for 62 numbers of steps (61, 103, ...)."""
    return read_sampler(settings.scheduler, steps).schedule.timesteps[-1] < 0


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.to_dict()
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | bool | int | float | dict) else str(value)
