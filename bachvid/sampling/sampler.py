"""Which solver on which schedule: what a checkpoint says about its own sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bachvid.sampling.flow_schedule import RULES, flow_schedule
from bachvid.sampling.flow_step import dpm_flow_2m, dpm_flow_sde_2m, flow_euler, unipc
from bachvid.sampling.schedule import Schedule, cogvideox_schedule
from bachvid.sampling.step import Step, ddim, dpm_sde_2m


@dataclass(frozen=True, eq=False)
class Sampler:
    """A schedule and the solver that walks it; without state, so that one serves any number of videos."""

    schedule: Schedule
    step: Step


def read_sampler(config: Mapping[str, Any], steps: int) -> Sampler:
    """The sampler that a diffusers `scheduler_config.json` describes, for a run of `steps` steps.

    A setting that is missing has diffusers' default, and one that nobody here knows may be there if it is off
    (None or False); a class or setting not built here raises ValueError.
    To sample with another solver than the shipped one, name its class: {**config, "_class_name": ...}. The
    flow schedulers know one more setting, which is ours: "sigma_rule", one of `flow_schedule.RULES`.
    """
    name = config.get("_class_name")
    if name not in SOLVERS:
        known = ", ".join(SOLVERS)
        raise ValueError(
            f"scheduler_config.json names the class {name!r}, which is not built. Known: {known}."
        )
    solver = SOLVERS[name]
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    readable = dict.fromkeys((*solver.arguments, *solver.limited, *solver.without_effect))
    if unknown := ", ".join(key for key in settings if settings[key] and key not in readable):
        raise ValueError(f"scheduler_config.json sets {unknown}, unknown to {name}. Set it to null there.")
    for key, (default, *built) in solver.limited.items():
        if (value := settings.get(key, default)) not in built:
            choice = " or ".join(map(repr, built))
            raise ValueError(
                f"{key} is {value!r} in scheduler_config.json, but only {choice} is built for {name}. "
                "Set it so there, or fetch the checkpoint's current files."
            )
    arguments = {ours: settings[theirs] for theirs, ours in solver.arguments.items() if theirs in settings}
    step = solver.other_steps.get(settings.get("algorithm_type", ""), solver.step)
    return Sampler(solver.schedule(steps, **arguments), step)


@dataclass(frozen=True, eq=False)
class Solver:
    """What stands here for a scheduler class of diffusers, and what becomes of that class's settings."""

    step: Step
    schedule: Callable[..., Schedule]  # its arguments default to what diffusers' class has
    arguments: Mapping[str, str]  # settings that the schedule takes: diffusers' name -> ours
    limited: Mapping[str, tuple[Any, ...]]  # name -> (diffusers' default, the values built here...)
    without_effect: tuple[str, ...]  # settings that diffusers stores but never reads with these solvers
    other_steps: Mapping[str, Step] = field(default_factory=dict)  # by the algorithm_type that asks for them


# CogVideoX's two classes have the same settings, and all its checkpoints share the limited ones.
COGVIDEOX_ARGUMENTS = {
    "snr_shift_scale": "snr_shift",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "num_train_timesteps": "train_steps",
}
COGVIDEOX_LIMITED = {
    "beta_schedule": ("scaled_linear", "scaled_linear"),
    "trained_betas": (None, None),
    "prediction_type": ("epsilon", "v_prediction"),
    "rescale_betas_zero_snr": (False, True),
    "set_alpha_to_one": (True, True),
    "timestep_spacing": ("leading", "trailing"),
}
# steps_offset is read with other timesteps than trailing ones.
COGVIDEOX_WITHOUT_EFFECT = ("clip_sample", "clip_sample_range", "sample_max_value", "steps_offset")

# A flow class also takes the others' settings, so that the solver can be changed by naming another class.
# Of the two names of the shift, the class's own stands last and wins.
MULTISTEP_ARGUMENTS = {
    "shift": "shift",
    "flow_shift": "shift",
    "num_train_timesteps": "train_steps",
    "sigma_rule": "rule",
}
EULER_ARGUMENTS = {
    "flow_shift": "shift",
    "shift": "shift",
    "num_train_timesteps": "train_steps",
    "sigma_rule": "rule",
}
FLOW_LIMITED = {
    "use_karras_sigmas": (False, False),
    "use_exponential_sigmas": (False, False),
    "use_beta_sigmas": (False, False),
    "use_dynamic_shifting": (False, False),
}
MULTISTEP_LIMITED = {
    **FLOW_LIMITED,
    "prediction_type": ("epsilon", "flow_prediction"),
    "use_flow_sigmas": (False, True),
    "solver_order": (2, 2),
    "thresholding": (False, False),
    "final_sigmas_type": ("zero", "zero"),
}
UNIPC_LIMITED = {
    **MULTISTEP_LIMITED,
    "sigma_rule": ("diffusers", "diffusers", "original"),  # the log-SNR must be finite from the start
    "solver_type": ("bh2", "bh2", "midpoint", "heun", "logrho"),  # DPM-Solver's names mean bh2
    "predict_x0": (True, True),
    "lower_order_final": (True, True),
    "disable_corrector": ([], []),
    "solver_p": (None, None),
    "shift_terminal": (None, None),
}
DPM_LIMITED = {
    **MULTISTEP_LIMITED,
    "sigma_rule": ("original", *RULES),
    "solver_type": ("midpoint", "midpoint", "bh1", "bh2", "logrho"),  # UniPC's names mean midpoint
    "algorithm_type": ("dpmsolver++", "dpmsolver++", "sde-dpmsolver++"),
    "use_lu_lambdas": (False, False),
}
EULER_LIMITED = {
    **FLOW_LIMITED,
    "sigma_rule": ("euler", *RULES),
    "prediction_type": ("flow_prediction", "flow_prediction"),
    "shift_terminal": (None, None),
    "invert_sigmas": (False, False),
    "stochastic_sampling": (False, False),
}
# With flow sigmas there are no betas and no spacing of timesteps; sigma_min and sigma_max bound other sigmas.
FLOW_WITHOUT_EFFECT = (
    *("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("timestep_spacing", "steps_offset", "sigma_min", "sigma_max", "lambda_min_clipped", "variance_type"),
    *("dynamic_thresholding_ratio", "sample_max_value", "euler_at_final"),
    *("time_shift_type", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
)

SOLVERS: dict[str, Solver] = {
    "CogVideoXDDIMScheduler": Solver(
        step=ddim,
        schedule=partial(cogvideox_schedule, snr_shift=3.0),
        arguments=COGVIDEOX_ARGUMENTS,
        limited=COGVIDEOX_LIMITED,
        without_effect=COGVIDEOX_WITHOUT_EFFECT,
    ),
    "CogVideoXDPMScheduler": Solver(
        step=dpm_sde_2m,
        schedule=partial(cogvideox_schedule, snr_shift=3.0),
        arguments=COGVIDEOX_ARGUMENTS,
        limited=COGVIDEOX_LIMITED,
        without_effect=COGVIDEOX_WITHOUT_EFFECT,
    ),
    "UniPCMultistepScheduler": Solver(
        step=unipc,
        schedule=partial(flow_schedule, rule="diffusers"),
        arguments=MULTISTEP_ARGUMENTS,
        limited=UNIPC_LIMITED,
        without_effect=(*FLOW_WITHOUT_EFFECT, *DPM_LIMITED, *EULER_LIMITED),
    ),
    "DPMSolverMultistepScheduler": Solver(
        step=dpm_flow_2m,
        schedule=partial(flow_schedule, rule="original"),
        arguments=MULTISTEP_ARGUMENTS,
        limited=DPM_LIMITED,
        without_effect=(*FLOW_WITHOUT_EFFECT, *UNIPC_LIMITED, *EULER_LIMITED),
        other_steps={"sde-dpmsolver++": dpm_flow_sde_2m},
    ),
    "FlowMatchEulerDiscreteScheduler": Solver(
        step=flow_euler,
        schedule=partial(flow_schedule, rule="euler"),
        arguments=EULER_ARGUMENTS,
        limited=EULER_LIMITED,
        without_effect=(*FLOW_WITHOUT_EFFECT, *UNIPC_LIMITED, *DPM_LIMITED),
    ),
}
