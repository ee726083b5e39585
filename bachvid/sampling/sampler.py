"""Which solver on which schedule: what a checkpoint says about its own sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bachvid.sampling.schedule import CogVideoXSchedule, cogvideox_schedule
from bachvid.sampling.step import Step, ddim, dpm_sde_2m


@dataclass(frozen=True, eq=False)
class Sampler:
    """A schedule and the solver that walks it; without state, so that one serves any number of videos."""

    schedule: CogVideoXSchedule
    step: Step


def read_sampler(config: Mapping[str, Any], steps: int) -> Sampler:
    """The sampler that a diffusers `scheduler_config.json` describes, for a run of `steps` steps.

    A setting that is missing has diffusers' default; a class or setting not built here raises ValueError.
    To sample with another solver than the shipped one, name its class: {**config, "_class_name": ...}.
    """
    name = config.get("_class_name")
    if name not in COGVIDEOX_SOLVERS:
        known = ", ".join(COGVIDEOX_SOLVERS)
        raise ValueError(
            f"scheduler_config.json names the class {name!r}, which is not built. Known: {known}."
        )
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    readable = (*COGVIDEOX_NUMBERS, *COGVIDEOX_FIXED, *COGVIDEOX_WITHOUT_EFFECT)
    if unknown := ", ".join(key for key in settings if key not in readable):
        raise ValueError(
            f"scheduler_config.json sets {unknown}, unknown to {name}. Known: {', '.join(readable)}."
        )
    for key, (default, required) in COGVIDEOX_FIXED.items():
        if (value := settings.get(key, default)) != required:
            raise ValueError(
                f"{key} is {value!r} in scheduler_config.json, but only {required!r} is built for {name}."
            )
    numbers = {ours: settings[theirs] for theirs, ours in COGVIDEOX_NUMBERS.items() if theirs in settings}
    return Sampler(cogvideox_schedule(steps, **{"snr_shift": 3.0, **numbers}), COGVIDEOX_SOLVERS[name])


COGVIDEOX_SOLVERS: dict[str, Step] = {"CogVideoXDDIMScheduler": ddim, "CogVideoXDPMScheduler": dpm_sde_2m}

# Settings that are numbers of our schedule: diffusers' name -> ours.
COGVIDEOX_NUMBERS = {
    "snr_shift_scale": "snr_shift",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "num_train_timesteps": "train_steps",
}
# Settings that every CogVideoX checkpoint has alike: name -> (diffusers' default, the value built here).
COGVIDEOX_FIXED = {
    "beta_schedule": ("scaled_linear", "scaled_linear"),
    "trained_betas": (None, None),
    "prediction_type": ("epsilon", "v_prediction"),
    "rescale_betas_zero_snr": (False, True),
    "set_alpha_to_one": (True, True),
    "timestep_spacing": ("leading", "trailing"),
}
# Settings that diffusers stores but these two solvers never read (steps_offset: not with trailing timesteps).
COGVIDEOX_WITHOUT_EFFECT = ("clip_sample", "clip_sample_range", "sample_max_value", "steps_offset")
