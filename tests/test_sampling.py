"""Schedules, solvers, guidance and the loop, against diffusers' schedulers: pytest tests/test_sampling.py"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline
from torch import Tensor

from bachvid.sampling.guidance import combine, dynamic, static
from bachvid.sampling.loop import Row, denoise, start
from bachvid.sampling.sampler import Sampler, read_sampler
from bachvid.sampling.schedule import cogvideox_alphas_cumprod, cogvideox_schedule, trailing_timesteps
from bachvid.sampling.step import ddim, dpm_sde_2m

SHAPE = (1, 3, 4, 4, 6)
# 7 never reaches alpha = 1; 61 makes one step too many, in diffusers as here.
STEP_COUNTS = (1, 2, 3, 7, 8, 10, 30, 50, 61)
CLASSES: dict[str, Any] = {
    "CogVideoXDDIMScheduler": CogVideoXDDIMScheduler,
    "CogVideoXDPMScheduler": CogVideoXDPMScheduler,
}

# scheduler/scheduler_config.json of CogVideoX-2b, as published.
CONFIG = json.loads("""{
  "_class_name": "CogVideoXDDIMScheduler", "_diffusers_version": "0.30.0.dev0",
  "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
  "clip_sample": false, "clip_sample_range": 1.0, "num_train_timesteps": 1000,
  "prediction_type": "v_prediction", "rescale_betas_zero_snr": true, "sample_max_value": 1.0,
  "set_alpha_to_one": true, "snr_shift_scale": 3.0, "steps_offset": 0,
  "timestep_spacing": "trailing", "trained_betas": null
}""")


def predict_for(sampler: Sampler) -> Callable[[Sequence[Row], int], list[Tensor]]:
    """A guided float32 prediction that depends on the latents and the timestep, as a model's does."""

    def predict(rows: Sequence[Row], step: int) -> list[Tensor]:
        return [guided(row.latents, sampler.schedule.timesteps[step]) for row in rows]

    return predict


def guided(latents: Tensor, t: int) -> Tensor:
    uncond = torch.sin(3 * latents.float() + t / 100)
    cond = torch.cos(2 * latents.float() - t / 100)
    return combine(uncond, cond, dynamic(6.0, t, 50))


def theirs(config: dict, steps: int, latents: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The latents after every step of diffusers' own loop."""
    scheduler = CLASSES[config["_class_name"]].from_config(config)
    scheduler.set_timesteps(steps)
    stochastic = isinstance(scheduler, CogVideoXDPMScheduler)
    dtype, past, before = latents.dtype, None, None
    for t in scheduler.timesteps:
        prediction = guided(latents, t.item())
        if stochastic:
            latents, past = scheduler.step(prediction, past, t, before, latents, generator=generator)
        else:
            latents = scheduler.step(prediction, t, latents, generator=generator, return_dict=False)[0]
        latents, before = latents.to(dtype), t
        yield latents


# Schedules


def test_timesteps_are_those_of_diffusers_for_every_number_of_steps() -> None:
    scheduler: Any = CogVideoXDDIMScheduler.from_config(CONFIG)
    stray = 0
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.tolist()
        assert trailing_timesteps(steps) == tuple(expected), steps
        stray += len(expected) > steps
    assert stray == 62


@pytest.mark.parametrize(
    ("shift", "values"),
    [(3.0, [0.997454, 0.946573, 0.09597, 2.7e-5]), (1.0, [0.99915, 0.98101, 0.242359, 8.6e-5])],
)
def test_alphas(shift: float, values: list[float]) -> None:
    alphas_cumprod = cogvideox_alphas_cumprod(shift)
    assert alphas_cumprod.dtype == torch.float64
    assert torch.equal(
        alphas_cumprod, CogVideoXDDIMScheduler.from_config(CONFIG, snr_shift_scale=shift).alphas_cumprod
    )
    assert alphas_cumprod[[0, 19, 499, 979]].tolist() == pytest.approx(values, abs=6e-7)
    assert alphas_cumprod[999] == 0
    assert (alphas_cumprod.diff() < 0).all()


def test_previous_is_a_fixed_stride() -> None:
    schedule = cogvideox_schedule(30)
    assert schedule.timesteps[:3] == (999, 966, 932)
    assert schedule.previous(966) == 933
    assert schedule.alpha_before(966) == schedule.alphas_cumprod[933]
    assert schedule.alpha_before(32) == 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_number_of_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=f"cannot have {steps} steps. Choose 1 to 1000"):
        cogvideox_schedule(steps)


# Solvers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", STEP_COUNTS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_step_equals_diffusers(name: str, steps: int, shift: float, dtype: torch.dtype) -> None:
    config = CONFIG | {"_class_name": name, "snr_shift_scale": shift}
    sampler = read_sampler(config, steps)
    for seed in (7, 8):  # the second video reuses the sampler: nothing may be left in it
        row, other = start(SHAPE, seed, dtype), start(SHAPE, seed, dtype)
        walk = theirs(config, steps, other.latents, other.generator)
        for step in denoise(predict_for(sampler), [row], sampler):
            expected = next(walk)
            assert row.latents.dtype == dtype
            assert torch.equal(row.latents, expected), f"step {step}"
            assert torch.equal(row.generator.get_state(), other.generator.get_state()), (
                f"draws of step {step}"
            )
        assert row.latents.isfinite().all()


@pytest.mark.parametrize("solver", [ddim, dpm_sde_2m])
@pytest.mark.parametrize("steps", [1, 8, 50])
def test_a_perfect_model_is_sampled_exactly(solver: Callable, steps: int) -> None:
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(cogvideox_schedule(steps), solver)

    def know(rows: Sequence[Row], step: int) -> list[Tensor]:
        alpha = sampler.schedule.alphas_cumprod[sampler.schedule.timesteps[step]]
        noise = (rows[0].latents - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        return [alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean]

    row = start(SHAPE, seed=1)
    for _ in denoise(know, [row], sampler):
        pass
    assert torch.allclose(row.latents, clean, atol=1e-5)


# What a checkpoint says


def test_solver_follows_the_class() -> None:
    assert read_sampler(CONFIG, 50).step is ddim
    assert read_sampler({**CONFIG, "_class_name": "CogVideoXDPMScheduler"}, 50).step is dpm_sde_2m


def test_absent_settings_have_the_defaults_of_diffusers() -> None:
    required = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")  # not diffusers' defaults
    short = {key: CONFIG[key] for key in ("_class_name", *required)}
    scheduler: Any = CogVideoXDDIMScheduler.from_config(short)
    assert torch.equal(read_sampler(short, 50).schedule.alphas_cumprod, scheduler.alphas_cumprod)
    for key in required:
        with pytest.raises(ValueError, match=key):
            read_sampler({k: v for k, v in short.items() if k != key}, 50)


def test_numbers_of_the_config_are_used() -> None:
    config = CONFIG | {
        "beta_start": 0.001,
        "beta_end": 0.02,
        "num_train_timesteps": 500,
        "snr_shift_scale": 2.0,
    }
    scheduler: Any = CogVideoXDDIMScheduler.from_config(config)
    scheduler.set_timesteps(20)
    schedule = read_sampler(config, 20).schedule
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "'PNDMScheduler'.*Known: CogVideoXDDIMScheduler, CogVideoXDPM"),
        ({"prediction_type": "epsilon"}, "prediction_type is 'epsilon'.*'v_prediction'"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing is 'linspace'.*'trailing'"),
        ({"beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        ({"rescale_betas_zero_snr": False}, "rescale_betas_zero_snr is False"),
        ({"set_alpha_to_one": False}, "set_alpha_to_one is False"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas, unknown to .* to null"),
    ],
)
def test_unsupported_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sampler({**CONFIG, **change}, 50)


# Guidance


def test_dynamic_guidance() -> None:
    values = {999: 2.291, 979: 2.544, 899: 4.272, 799: 1.005, 499: 1.521, 39: 1.000, 19: 1.123}
    for t, value in values.items():
        assert dynamic(6.0, t, 50) == pytest.approx(value, abs=6e-4)


def test_combine() -> None:
    uncond, cond = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0])
    assert combine(uncond, cond, static(6.0, 999, 50)).tolist() == [7.0, -10.0]
    assert combine(uncond.bfloat16(), cond.bfloat16(), 6.0).dtype == torch.bfloat16


# The loop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_start_is_the_noise_of_the_pipeline(dtype: torch.dtype) -> None:
    pipeline: Any = CogVideoXPipeline(None, None, None, None, CogVideoXDDIMScheduler.from_config(CONFIG))
    generator = torch.Generator("cpu").manual_seed(42)
    expected = pipeline.prepare_latents(1, 16, 9, 32, 48, dtype, torch.device("cpu"), generator)
    row = start((1, 3, 16, 4, 6), 42, dtype)
    assert torch.equal(row.latents, expected)
    assert row.latents.dtype == dtype
    assert torch.equal(row.generator.get_state(), generator.get_state())


@pytest.mark.parametrize("solver", [ddim, dpm_sde_2m])
def test_rows_do_not_touch_each_other(solver: Callable) -> None:
    sampler = Sampler(cogvideox_schedule(8), solver)
    together, alone = ([start(SHAPE, seed) for seed in (1, 2, 3)] for _ in range(2))
    seen = list(denoise(predict_for(sampler), together, sampler))
    for row in alone:
        for _ in denoise(predict_for(sampler), [row], sampler):
            pass
    assert seen == list(range(8))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("solver", [ddim, dpm_sde_2m])
def test_a_stopped_walk_goes_on_where_it_stopped(solver: Callable) -> None:
    sampler = Sampler(cogvideox_schedule(8), solver)
    whole, parts = start(SHAPE, 1), start(SHAPE, 1)
    list(denoise(predict_for(sampler), [whole], sampler))
    for step in denoise(predict_for(sampler), [parts], sampler):
        if step == 4:
            break
    kept = parts.latents
    before = kept.clone()
    assert list(denoise(predict_for(sampler), [parts], sampler, steps=range(5, 8))) == [5, 6, 7]
    assert torch.equal(parts.latents, whole.latents)
    assert torch.equal(kept, before), "latents a caller keeps must not be written to"


def test_a_prediction_for_every_row() -> None:
    sampler = Sampler(cogvideox_schedule(2), ddim)
    with pytest.raises(ValueError, match="zip"):
        list(denoise(lambda rows, step: [rows[0].latents], [start(SHAPE, 1), start(SHAPE, 2)], sampler))


def test_gradients_are_off_inside_only() -> None:
    sampler = Sampler(cogvideox_schedule(2), ddim)
    weight = torch.ones((), requires_grad=True)
    row = start(SHAPE, 1)
    for _ in denoise(lambda rows, step: [weight * rows[0].latents], [row], sampler):
        assert torch.is_grad_enabled()
        assert not row.latents.requires_grad
