"""Flow-matching schedules and solvers, against diffusers' schedulers: pytest tests/test_flow_sampling.py"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from bachvid.sampling.flow_schedule import RULES, FlowSchedule, flow_schedule
from bachvid.sampling.flow_step import dpm_flow_2m, dpm_flow_sde_2m, flow_euler, unipc
from bachvid.sampling.loop import Row, denoise, start
from bachvid.sampling.sampler import FLOW_WITHOUT_EFFECT, Sampler, read_sampler

SHAPE = (1, 4, 3, 4, 6)
STEP_COUNTS = (1, 2, 3, 7, 8, 10, 30, 50)
SHIFTS = (1.0, 3.0, 5.0, 8.0)
FP32, BF16 = torch.float32, torch.bfloat16
CLASSES: dict[str, Any] = {
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
    "DPMSolverMultistepScheduler": DPMSolverMultistepScheduler,
    "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler,
}
# The rule each solver is tried with where the class does not matter.
NATIVE = {unipc: "diffusers", dpm_flow_2m: "original", flow_euler: "euler"}
STOCHASTIC = {"algorithm_type": "sde-dpmsolver++"}  # of DPMSolverMultistepScheduler
RULE_OF = {**NATIVE, dpm_flow_sde_2m: "original"}

# scheduler/scheduler_config.json of Wan2.1-T2V-1.3B-Diffusers, as published.
WAN = json.loads("""{
  "_class_name": "UniPCMultistepScheduler", "_diffusers_version": "0.33.0.dev0",
  "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "disable_corrector": [],
  "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero", "flow_shift": 3.0,
  "lower_order_final": true, "num_train_timesteps": 1000, "predict_x0": true,
  "prediction_type": "flow_prediction", "rescale_betas_zero_snr": false, "sample_max_value": 1.0,
  "solver_order": 2, "solver_p": null, "solver_type": "bh2", "steps_offset": 0,
  "thresholding": false, "timestep_spacing": "linspace", "trained_betas": null,
  "use_beta_sigmas": false, "use_exponential_sigmas": false, "use_flow_sigmas": true,
  "use_karras_sigmas": false
}""")
# Values that no checkpoint has, for settings that flow matching does not read.
UNUSUAL = json.loads("""{
  "beta_start": 0.01, "beta_end": 0.1, "beta_schedule": "scaled_linear", "trained_betas": [0.1, 0.2],
  "rescale_betas_zero_snr": true, "timestep_spacing": "leading", "steps_offset": 1, "sigma_min": 0.1,
  "sigma_max": 0.9, "lambda_min_clipped": -5.1, "variance_type": "learned", "sample_max_value": 0.1,
  "dynamic_thresholding_ratio": 0.1, "euler_at_final": true, "time_shift_type": "linear",
  "base_shift": 0.1, "max_shift": 9.0, "base_image_seq_len": 1, "max_image_seq_len": 2
}""")


def config_of(name: str, shift: float) -> dict[str, Any]:
    """Wan's settings for one of the classes; diffusers reads the shift under the class's own name."""
    return {**WAN, "_class_name": name, "flow_shift": shift, "shift": shift}


def scheduler_of(config: dict[str, Any], steps: int) -> Any:
    """diffusers' scheduler as its pipelines prepare it."""
    known = CLASSES[config["_class_name"]]
    scheduler = known.from_config({key: value for key, value in config.items() if key != "sigma_rule"})
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    return scheduler


def velocity(latents: Tensor, t: float, dtype: torch.dtype) -> Tensor:
    """A prediction that depends on the latents and the timestep, as a model's does."""
    return torch.sin(3 * latents.float() + t / 100).to(dtype)


def predict_for(sampler: Sampler, dtype: torch.dtype = FP32) -> Callable[[Sequence[Row], int], list[Tensor]]:
    def predict(rows: Sequence[Row], step: int) -> list[Tensor]:
        return [velocity(row.latents, sampler.schedule.timesteps[step], dtype) for row in rows]

    return predict


def theirs(
    scheduler: Any, latents: Tensor, dtype: torch.dtype, generator: torch.Generator
) -> Iterator[Tensor]:
    """The latents after every step of diffusers' own loop."""
    takes = inspect.signature(scheduler.step).parameters  # as diffusers' pipelines ask
    chance = {"generator": generator} if "generator" in takes else {}
    for t in scheduler.timesteps:
        prediction = velocity(latents, t.item(), dtype)
        latents = scheduler.step(prediction, t, latents, **chance, return_dict=False)[0]
        yield latents


def assert_walks_are_equal(sampler: Sampler, scheduler: Any, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Ours and theirs from the same noise; the first dtype is that of the latents."""
    row = start(SHAPE, 7, dtypes[0])
    generator = row.generator.clone_state()
    walk = theirs(scheduler, row.latents, dtypes[1], generator)
    for step in denoise(predict_for(sampler, dtypes[1]), [row], sampler):
        expected = next(walk)
        assert row.latents.dtype == expected.dtype
        assert torch.equal(row.latents, expected), f"step {step}"
    assert row.latents.isfinite().all()
    assert torch.equal(row.generator.get_state(), generator.get_state()), "as much noise is drawn"


# Schedules


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", CLASSES)
def test_schedule_equals_diffusers(name: str, shift: float) -> None:
    config = config_of(name, shift)
    scheduler = scheduler_of(config, 1)
    for steps in (*range(1, 60), 100, 333, 999, 1000):
        scheduler.set_timesteps(steps)
        schedule: Any = read_sampler(config, steps).schedule
        assert schedule.steps == steps
        assert schedule.sigmas.dtype == scheduler.sigmas.dtype
        assert torch.equal(schedule.sigmas, scheduler.sigmas), steps
        told = torch.tensor(schedule.timesteps)  # as a model is told them
        assert told.dtype == scheduler.timesteps.dtype
        assert torch.equal(told, scheduler.timesteps), steps


@pytest.mark.parametrize(
    ("rule", "shift", "first", "last"),
    [
        ("diffusers", 3.0, (999, 993, 986, 979), (208, 162, 113, 60)),
        ("original", 3.0, (999, 992, 985, 978), (206, 160, 111, 57)),
        ("diffusers", 5.0, (999, 995, 991, 987), (305, 244, 175, 96)),
        ("original", 5.0, (999, 995, 991, 987), (302, 241, 172, 92)),
        ("original-dpm++", 3.0, (1000, 993, 986, 979), (206, 160, 111, 57)),
    ],
)
def test_timesteps_of_50_steps(rule: str, shift: float, first: tuple[int], last: tuple[int]) -> None:
    timesteps = flow_schedule(50, shift, rule).timesteps
    assert timesteps[:4] == first
    assert timesteps[-4:] == last


@pytest.mark.parametrize(("shift", "differ", "gap"), [(3.0, 40, 0.0028), (5.0, 27, 0.0043)])
def test_diffusers_has_left_the_original_rule(shift: float, differ: int, gap: float) -> None:
    new, old = flow_schedule(50, shift, "diffusers"), flow_schedule(50, shift, "original")
    assert sum(a != b for a, b in zip(new.timesteps, old.timesteps, strict=True)) == differ
    assert (new.sigmas - old.sigmas).abs().max().item() == pytest.approx(gap, abs=5e-5)


@pytest.mark.parametrize("shift", SHIFTS)
def test_original_rules_are_those_of_the_authors(shift: float) -> None:
    # Wan's UniPC is constructed with shift 1: it begins at the float32 1 - 1 / 1000 and shifts once.
    for steps in STEP_COUNTS:
        for rule, largest in (("original", torch.tensor(0.999).item()), ("original-dpm++", 1.0)):
            flat = torch.linspace(largest, 0, steps + 1, dtype=torch.float64)
            expected = shift * flat / (1 + (shift - 1) * flat)
            assert torch.allclose(flow_schedule(steps, shift, rule).sigmas.double(), expected, atol=1e-7)


def test_euler_shifts_its_end_twice() -> None:
    schedule = flow_schedule(50, 3.0, "euler")
    assert schedule.sigmas[0] == 1
    assert schedule.sigmas[-2].item() == pytest.approx(0.00893, abs=5e-6)
    assert schedule.timesteps[-1] == pytest.approx(8.93, abs=5e-3)


@pytest.mark.parametrize("rule", RULES)
def test_noise_falls_to_exactly_nothing(rule: str) -> None:
    for shift in (0.5, *SHIFTS):
        schedule = flow_schedule(20, shift, rule)
        assert (schedule.sigmas.diff() < 0).all()
        assert schedule.sigmas[-1] == 0
        assert schedule.half_log_snr(20) == torch.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "cannot have 0 steps. Choose 1 to 1000"),
        ({"steps": 1001}, "cannot have 1001 steps. Choose 1 to 1000"),
        ({"steps": 8, "shift": 0.0}, "cannot be 0.0. It is positive"),
        ({"steps": 8, "shift": float("nan")}, "cannot be nan"),
        ({"steps": 8, "rule": "karras"}, "no sigma rule 'karras'. Known: diffusers, original, original-dpm"),
    ],
)
def test_impossible_schedules(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow_schedule(**arguments)


# Solvers


@pytest.mark.parametrize("dtypes", [(FP32, FP32), (FP32, BF16), (BF16, BF16)], ids=["fp32", "mixed", "bf16"])
@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_step_equals_diffusers(name: str, steps: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    config = config_of(name, 3.0)
    assert_walks_are_equal(read_sampler(config, steps), scheduler_of(config, steps), dtypes)


@pytest.mark.parametrize("dtypes", [(FP32, FP32), (FP32, BF16), (BF16, BF16)], ids=["fp32", "mixed", "bf16"])
@pytest.mark.parametrize("steps", STEP_COUNTS)
def test_every_stochastic_step_equals_diffusers(steps: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    config = config_of("DPMSolverMultistepScheduler", 3.0) | STOCHASTIC
    sampler = read_sampler(config, steps)
    assert sampler.step is dpm_flow_sde_2m
    assert_walks_are_equal(sampler, scheduler_of(config, steps), dtypes)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_shift_equals_diffusers(name: str, shift: float) -> None:
    config = config_of(name, shift)
    sampler, scheduler = read_sampler(config, 10), scheduler_of(config, 10)
    for _ in range(2):  # the second video reuses the sampler: nothing may be left in it
        assert_walks_are_equal(sampler, scheduler, (FP32, BF16))
        scheduler.set_timesteps(10)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_latents_less_precise_than_the_model(name: str) -> None:
    # Half the work of diffusers' UniPC refuses this.
    config = config_of(name, 3.0)
    assert_walks_are_equal(read_sampler(config, 8), scheduler_of(config, 8), (BF16, FP32))


def test_unipc_on_the_original_levels_equals_diffusers() -> None:
    config = {**WAN, "flow_shift": 5.0, "sigma_rule": "original"}
    sampler = read_sampler(config, 10)
    schedule: Any = sampler.schedule
    scheduler = scheduler_of({**config, "flow_shift": 1.0}, 10)
    scheduler.set_timesteps(sigmas=schedule.sigmas[:-1].double().numpy())
    scheduler.timesteps = torch.tensor(schedule.timesteps)
    assert torch.equal(scheduler.sigmas, schedule.sigmas)
    assert_walks_are_equal(sampler, scheduler, (FP32, FP32))


def test_dpm_from_pure_noise_is_finite() -> None:
    # The log-SNR is -inf where the second step looks back to.
    sampler = Sampler(flow_schedule(10, 5.0, "original-dpm++"), dpm_flow_2m)
    row = start(SHAPE, 1)
    for _ in denoise(predict_for(sampler), [row], sampler):
        assert row.latents.isfinite().all()


@pytest.mark.parametrize("solver", RULE_OF)
@pytest.mark.parametrize("steps", [1, 8, 50])
def test_a_perfect_model_is_sampled_exactly(solver: Callable, steps: int) -> None:
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    schedule = flow_schedule(steps, 3.0, RULE_OF[solver])

    def know(rows: Sequence[Row], step: int) -> list[Tensor]:
        return [(rows[0].latents - clean) / schedule.sigmas[step]]

    row = start(SHAPE, seed=1)
    for _ in denoise(know, [row], Sampler(schedule, solver)):
        pass
    assert torch.allclose(row.latents, clean, atol=1e-5)


@pytest.mark.parametrize(("solver", "gain"), [(flow_euler, 1.9), (dpm_flow_2m, 3.0), (unipc, 4.0)])
def test_twice_the_steps_shrink_the_error(solver: Callable, gain: float) -> None:
    # About 2 times in first order and 4 in second; the infinite log-SNR at the end costs DPM-Solver++ some.
    errors = [error_for_gaussian_data(solver, steps) for steps in (80, 160)]
    assert errors[0] > gain * errors[1]


def error_for_gaussian_data(solver: Callable, steps: int) -> float:
    """How far a walk ends from the truth where clean latents are normal with deviation 1/2.

    Latents are then normal at every level, their velocity is linear, and its flow keeps their quantile.
    """
    schedule = flow_schedule(steps, 1.0, "original")

    def deviation(sigma: Tensor) -> Tensor:
        return ((0.5 * (1 - sigma)) ** 2 + sigma**2) ** 0.5

    def know(rows: Sequence[Row], step: int) -> list[Tensor]:
        sigma, latents = schedule.sigmas[step].double(), rows[0].latents
        clean = 0.25 * (1 - sigma) / deviation(sigma) ** 2 * latents
        return [(latents - clean) / sigma]

    row = start((1,), seed=1, dtype=torch.float64)
    truth = row.latents * 0.5 / deviation(schedule.sigmas[0].double())
    for _ in denoise(know, [row], Sampler(schedule, solver)):
        pass
    return (row.latents - truth).abs().item()


@pytest.mark.parametrize("solver", RULE_OF)
def test_rows_do_not_touch_each_other(solver: Callable) -> None:
    sampler = Sampler(flow_schedule(8, 3.0, RULE_OF[solver]), solver)
    together, alone = ([start(SHAPE, seed) for seed in (1, 2)] for _ in range(2))
    list(denoise(predict_for(sampler), together, sampler))
    for row in alone:
        list(denoise(predict_for(sampler), [row], sampler))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("solver", RULE_OF)
def test_a_stopped_walk_goes_on_where_it_stopped(solver: Callable) -> None:
    sampler = Sampler(flow_schedule(8, 3.0, RULE_OF[solver]), solver)
    whole, parts = start(SHAPE, 1), start(SHAPE, 1)
    list(denoise(predict_for(sampler), [whole], sampler))
    list(denoise(predict_for(sampler), [parts], sampler, steps=range(5)))
    kept, past = parts.latents, parts.past
    before = [tensor.clone() for tensor in (kept, *tensors_in(past))]
    list(denoise(predict_for(sampler), [parts], sampler, steps=range(5, 8)))
    assert torch.equal(parts.latents, whole.latents)
    for tensor, copy in zip((kept, *tensors_in(past)), before, strict=True):
        assert torch.equal(tensor, copy), "what a caller keeps must not be written to"


def tensors_in(past: Any) -> tuple[Tensor, ...]:
    """What a solver remembers: nothing, one tensor or several."""
    return (past,) if isinstance(past, Tensor) else tuple(past or ())


@pytest.mark.parametrize("solver", NATIVE)
def test_a_walk_may_begin_in_the_middle(solver: Callable) -> None:
    # Without a past every solver takes a step of first order, and those are one and the same.
    sampler = Sampler(flow_schedule(8, 3.0, NATIVE[solver]), solver)
    row = start(SHAPE, 1)
    list(denoise(predict_for(sampler), [row], sampler, steps=range(4)))
    newcomer, straight = Row(row.latents, row.generator), Row(row.latents, row.generator)
    list(denoise(predict_for(sampler), [newcomer], sampler, steps=[4]))
    list(denoise(predict_for(sampler), [straight], Sampler(sampler.schedule, flow_euler), steps=[4]))
    assert torch.allclose(newcomer.latents, straight.latents, atol=1e-5)
    list(denoise(predict_for(sampler), [newcomer], sampler, steps=range(5, 8)))
    assert newcomer.latents.isfinite().all()


# What a checkpoint says


def test_wan_is_read_as_published() -> None:
    sampler = read_sampler(WAN, 50)
    assert sampler.step is unipc
    assert isinstance(sampler.schedule, FlowSchedule)
    assert torch.equal(sampler.schedule.sigmas, flow_schedule(50, 3.0, "diffusers").sigmas)


@pytest.mark.parametrize(("name", "solver"), list(zip(CLASSES, NATIVE, strict=True)), ids=list(CLASSES))
def test_another_class_changes_the_solver_and_keeps_the_shift(name: str, solver: Callable) -> None:
    sampler = read_sampler({**WAN, "_class_name": name}, 50)
    schedule: Any = sampler.schedule
    assert sampler.step is solver
    assert schedule.timesteps == flow_schedule(50, 3.0, NATIVE[solver]).timesteps


@pytest.mark.parametrize("name", CLASSES)
def test_of_two_shifts_the_class_reads_its_own(name: str) -> None:
    config = {**WAN, "_class_name": name, "flow_shift": 3.0, "shift": 5.0}
    schedule: Any = read_sampler(config, 8).schedule
    assert torch.equal(schedule.sigmas, scheduler_of(config, 8).sigmas)


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_of_the_config_are_used(name: str) -> None:
    config = config_of(name, 2.5) | {"num_train_timesteps": 500}
    schedule: Any = read_sampler(config, 20).schedule
    scheduler = scheduler_of(config, 20)
    assert torch.equal(schedule.sigmas, scheduler.sigmas)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("name", CLASSES)
def test_absent_settings_have_the_defaults_of_diffusers(name: str) -> None:
    required = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}  # not diffusers' defaults
    if name == "FlowMatchEulerDiscreteScheduler":
        required = {}
    short = {"_class_name": name, **required}
    assert_walks_are_equal(read_sampler(short, 8), scheduler_of(short, 8), (FP32, FP32))
    for key in required:
        with pytest.raises(ValueError, match=key):
            read_sampler({k: v for k, v in short.items() if k != key}, 8)


@pytest.mark.parametrize("name", CLASSES)
def test_settings_without_effect_have_none(name: str) -> None:
    of_others = {
        "UniPCMultistepScheduler": {"stochastic_sampling": True, "solver_type": "heun"},
        "DPMSolverMultistepScheduler": {"lower_order_final": False, "solver_type": "bh2"},
        "FlowMatchEulerDiscreteScheduler": {"solver_order": 3, "solver_type": "bh1"},
    }
    config = config_of(name, 3.0) | UNUSUAL | of_others[name]
    assert set(UNUSUAL) == set(FLOW_WITHOUT_EFFECT)
    assert_walks_are_equal(read_sampler(config, 8), scheduler_of(config, 8), (FP32, FP32))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("UniPC", {"prediction_type": "epsilon"}, "prediction_type is 'epsilon'.*'flow_prediction'"),
        ("UniPC", {"use_flow_sigmas": False}, "use_flow_sigmas is False"),
        ("UniPC", {"solver_order": 3}, "solver_order is 3 .*only 2 is built for UniPC"),
        ("UniPC", {"solver_type": "bh1"}, "solver_type is 'bh1'.*'bh2' or"),
        ("UniPC", {"predict_x0": False}, "predict_x0 is False"),
        ("UniPC", {"lower_order_final": False}, "lower_order_final is False"),
        ("UniPC", {"disable_corrector": [0]}, r"disable_corrector is \[0\]"),
        ("UniPC", {"final_sigmas_type": "sigma_min"}, "final_sigmas_type is 'sigma_min'"),
        ("UniPC", {"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        ("UniPC", {"use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
        ("UniPC", {"sigma_rule": "original-dpm++"}, "sigma_rule is .*'diffusers' or 'original' is built"),
        ("UniPC", {"clip_sample": True}, "clip_sample, unknown to UniPC.* to null"),
        ("DPMSolver", {"solver_type": "heun"}, "solver_type is 'heun'"),
        ("DPMSolver", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type is 'sde-dpmsolver'.*'dpmsolver"),
        ("DPMSolver", {"sigma_rule": "karras"}, "sigma_rule is 'karras'"),
        ("FlowMatchEuler", {"stochastic_sampling": True}, "stochastic_sampling is True"),
        ("FlowMatchEuler", {"invert_sigmas": True}, "invert_sigmas is True"),
        ("FlowMatchEuler", {"shift": -1.0}, "shift of a flow schedule cannot be -1.0"),
    ],
)
def test_unsupported_settings_are_refused(name: str, change: dict[str, Any], message: str) -> None:
    full = next(known for known in CLASSES if known.startswith(name))
    with pytest.raises(ValueError, match=message):
        read_sampler({**WAN, "_class_name": full, **change}, 50)


def test_a_setting_of_a_newer_diffusers_that_is_off_changes_nothing() -> None:
    known, newer = ({**WAN, **more} for more in ({}, {"use_future_sigmas": False, "future": None}))
    assert read_sampler(newer, 8).schedule.timesteps == read_sampler(known, 8).schedule.timesteps
