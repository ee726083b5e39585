"""Wan through the command line: diffusers' own latents, the method, the original layout, and misfits.

pytest tests/test_run_wan.py
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from safetensors.torch import load_file, save_file

from bachvid.__main__ import main
from bachvid.method.identity import Trajectory
from bachvid.models.checkpoint import WeightsError, open_checkpoint
from bachvid.models.wan_original import UMT5_ORIGINAL
from bachvid.pictures.files import count_frames
from bachvid.sampling.sampler import read_sampler
from bachvid.settings import add_arguments as add_settings
from bachvid.settings import resolve

TEXT = 40
STORY = ["--background", "a small [kitchen]", "--character", "a red [fox] &amp; a dog"]
SCHEDULERS: dict[str, Any] = {
    "unipc": UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    ),
    "dpm++": DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    ),
    "dpm++sde": DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=3.0,
        algorithm_type="sde-dpmsolver++",
    ),
    "euler": FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as diffusers saves it."""
    root = tmp_path_factory.mktemp("wan")
    tiny.train_tokenizer(root / "tokenizer")
    tiny.wan_pipeline(root / "tokenizer", TEXT).save_pretrained(root / "model")
    return root / "model"


def run(*flags: Any) -> int:
    return main(["run", "--device", "cpu", *(str(flag) for flag in flags)])


def actions(*texts: str) -> list[str]:
    return [*STORY, *(part for text in texts for part in ("--action", text))]


@pytest.mark.parametrize(
    ("solver", "guidance", "size"),
    [
        ("unipc", 4.0, (48, 80)),
        ("unipc", 1.0, (80, 48)),
        ("dpm++", 4.0, (112, 32)),
        ("dpm++sde", 4.0, (80, 48)),
        ("euler", 4.0, (48, 80)),
    ],
)
def test_every_step_has_the_latents_of_diffusers(
    model: Path, tmp_path: Path, solver: str, guidance: float, size: tuple[int, int]
) -> None:
    pipeline = WanPipeline.from_pretrained(model)
    pipeline.scheduler = SCHEDULERS[solver]
    pipeline.set_progress_bar_config(disable=True)
    steps: list[torch.Tensor] = []

    def keep(_: Any, step: int, t: Any, seen: dict[str, Any]) -> dict[str, Any]:
        steps.append(seen["latents"])
        return {}

    pipeline(
        "a small kitchen a red fox &amp; a dog looks", negative_prompt="",
        width=size[0], height=size[1], num_frames=9, num_inference_steps=5, guidance_scale=guidance,
        generator=torch.manual_seed(11),  # the global one: the pipeline lends its solver no other
        output_type="latent", max_sequence_length=TEXT, callback_on_step_end=keep,
    )  # fmt: skip
    flags = ["--model", model, *actions("looks"), "--solver", solver, "--steps", 5, "--guidance", guidance]
    flags += ["--size", f"{size[0]}x{size[1]}", "--frames", 9, "--seed", 11]
    assert run(*flags, "--save-identity", "--out", tmp_path / "on") == 0
    assert run(*flags, "--mode", "off", "--out", tmp_path / "off") == 0

    ours = Trajectory.load(tmp_path / "on/identity/trajectory.safetensors").latents
    assert len(ours) == 6
    scale = max(1.0, max(float(step.abs().max()) for step in steps))  # random weights may blow up
    for mine, theirs in zip(ours[1:], steps, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * scale
    off = load_file(tmp_path / "off/identity/latents.safetensors")["latents"]
    assert torch.equal(off, ours[-1])  # the method never touches the identity


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three videos."""
    out = tmp_path_factory.mktemp("run") / "fox"
    flags = [*actions("looks", "opens", "opens the window"), "--steps", 4, "--size", "48x32", "--frames", 9]
    assert run("--model", model, *flags, "--save-identity", "--out", out) == 0
    return out


def test_a_run_writes_videos_and_the_words_of_its_masks(made: Path) -> None:
    for video in ("identity", "shots/01-opens", "shots/02-opens-the-window"):
        assert count_frames(made / video / "video.mp4") == 9
    config = json.loads((made / "config.json").read_text())
    assert config["words"] == {"source": "marked", "background": ["kitchen"], "character": ["fox"]}
    videos = json.loads((made / "manifest.json").read_text())["videos"]
    assert all(video["tokens"]["background"] and video["tokens"]["character"] for video in videos)
    assert config["recipe"]["value"]["mask_kind"] == "cross" and config["fps"]["value"] == 16


def test_who_joins_names_words_of_its_own(made: Path, model: Path, tmp_path: Path) -> None:
    """The identity's mask is known: what the new story marks need not be in its text, nor in its order."""
    recipe = json.loads((made / "config.json").read_text())["recipe"]["value"]
    (tmp_path / "preset.json").write_text(json.dumps({**recipe, "character_first": True}))
    words = [
        "--background",
        "the [window] of a wood",
        "--character",
        "a big [fox] in red",
        "--action",
        "opens",
    ]
    flags = ["--steps", 4, "--size", "48x32", "--frames", 9, "--preset", tmp_path / "preset.json"]
    joins = ["--identity", made / "identity/trajectory.safetensors", "--save-identity"]
    assert run("--model", model, *words, *flags, *joins, "--out", tmp_path / "joined") == 0
    config = json.loads((tmp_path / "joined/config.json").read_text())
    assert config["words"]["background"] == ["window"]
    identity, shot = json.loads((tmp_path / "joined/manifest.json").read_text())["videos"]
    assert shot["prompt"].startswith("a big fox") and identity["prompt"].startswith("a small kitchen a red")
    for saved in (made, tmp_path / "joined"):  # whoever joins either reads the identity's prompt as it was
        assert not Trajectory.load(saved / "identity/trajectory.safetensors").recipe.character_first


@pytest.mark.parametrize("source", ["replay", "cache"])
def test_every_source_makes_the_same_videos(made: Path, model: Path, tmp_path: Path, source: str) -> None:
    flags = [*actions("looks", "opens", "opens the window"), "--steps", 4, "--size", "48x32", "--frames", 9]
    assert run("--model", model, *flags, "--source", source, "--out", tmp_path / "again") == 0
    for name in ("identity", "shots/01-opens", "shots/02-opens-the-window"):
        first, second = (load_file(f / name / "latents.safetensors") for f in (made, tmp_path / "again"))
        assert torch.equal(first["latents"], second["latents"])


# The original layout


@pytest.fixture(scope="module")
def original(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as the original release stores them."""
    root = tmp_path_factory.mktemp("original")
    transformer = load_file(model / "transformer/diffusion_pytorch_model.safetensors")
    named = {tiny.wan_original_name(name): tensor for name, tensor in transformer.items()}
    save_file(named, root / "diffusion_pytorch_model.safetensors")
    (root / "config.json").write_text(json.dumps({"model_type": "t2v", "num_heads": 2}))
    vae, text = open_checkpoint(model).vae(), open_checkpoint(model).text_encoder()
    torch.save(dict(vae.named_parameters()), root / "Wan2.1_VAE.pth")
    table = {UMT5_ORIGINAL.source(name).name: p.detach() for name, p in text.model.named_parameters()}
    torch.save(table, root / "models_t5_umt5-xxl-enc-bf16.pth")
    folder = root / "google" / "umt5-xxl"
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes((model.parent / "tokenizer" / "spiece.model").read_bytes())
    return root


@pytest.mark.parametrize(
    ("solver", "first", "last"),  # timesteps told to the model: those of Wan's own code, and of diffusers
    [("unipc", 999, 92), ("dpm++", 1000, 92), ("euler", 1000, 24.4)],
)
def test_an_original_release_places_levels_by_its_solver(
    original: Path, solver: str, first: float, last: float
) -> None:
    parser = argparse.ArgumentParser()
    add_settings(parser)
    settings = resolve(parser.parse_args(["--solver", solver]), open_checkpoint(original), original)
    timesteps = read_sampler(settings.scheduler, 50).schedule.timesteps
    assert (timesteps[0], timesteps[-1]) == pytest.approx((first, last), abs=0.5)


@torch.no_grad()
def test_the_original_layout_holds_the_same_model(model: Path, original: Path) -> None:
    one, two = open_checkpoint(model), open_checkpoint(original)
    assert (two.layout, two.family, two.config.heads) == ("original", "wan", 2)
    assert two.scheduler["flow_shift"] == 5.0 and two.scheduler["sigma_rule"] == "original"
    generator = torch.Generator().manual_seed(0)
    latents, text = (
        torch.randn(1, 16, 3, 4, 6, generator=generator),
        torch.randn(1, 7, 32, generator=generator),
    )
    t = torch.tensor([500])
    assert torch.equal(one.transformer()(latents, t, text), two.transformer()(latents, t, text))
    first, second = one.text_encoder().encode("a red fox"), two.text_encoder().encode("a red fox")
    assert second.shape[1] == 512 and torch.equal(first[:, :5], second[:, :5])
    for (name, mine), (_, theirs) in zip(
        one.vae().named_parameters(), two.vae().named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


@pytest.fixture(scope="module")
def of_comfy(original: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in ComfyUI's folders, beside a T5 of another model."""
    root = tmp_path_factory.mktemp("models")
    for name in ("diffusion_models", "vae", "text_encoders"):
        (root / name).mkdir()
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):  # so few heads no width tells
        shutil.copy(original / name, root / "diffusion_models")
    vae = torch.load(original / "Wan2.1_VAE.pth", weights_only=True)
    save_file(vae, root / "vae/wan_2.1_vae.safetensors")
    text = load_file(model / "text_encoder/model.safetensors")
    tokenizer = np.fromfile(original / "google/umt5-xxl/spiece.model", dtype=np.uint8)
    carried = {**text, "spiece_model": torch.from_numpy(tokenizer)}
    save_file(carried, root / "text_encoders/umt5_xxl_fp16.safetensors")
    tiny.t5().save_pretrained(root / "t5")
    shutil.move(root / "t5/model.safetensors", root / "text_encoders/t5xxl_fp16.safetensors")
    return root


@torch.no_grad()
def test_the_files_of_comfyui_hold_the_same_model(original: Path, of_comfy: Path, tmp_path: Path) -> None:
    one, two = open_checkpoint(original), open_checkpoint(of_comfy)
    assert (two.layout, two.family, two.config) == ("original", "wan", one.config)
    text = two.text_encoder()
    assert torch.equal(one.text_encoder().encode("a red fox"), text.encode("a red fox"))
    text.save(tmp_path)
    spiece = (original / "google/umt5-xxl/spiece.model").read_bytes()
    assert (tmp_path / "tokenizer/spiece.model").read_bytes() == spiece
    for part in ("transformer", "vae"):
        mine, theirs = (dict(getattr(each, part)().named_parameters()) for each in (two, one))
        assert all(torch.equal(mine[name], theirs[name]) for name in mine) and mine.keys() == theirs.keys()


@torch.no_grad()
def test_weights_in_eight_bits_are_read_at_their_scale(of_comfy: Path, tmp_path: Path) -> None:
    shutil.copytree(of_comfy, tmp_path / "models")
    expected: dict[str, dict[str, torch.Tensor]] = {}
    for part, name, prefix in (
        ("transformer", "diffusion_models/diffusion_pytorch_model", "model.diffusion_model."),
        ("text_encoder", "text_encoders/umt5_xxl_fp16", ""),
    ):
        file = tmp_path / f"models/{name}.safetensors"
        stored = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
        expected[part] = load_file(file)
        for tensor, values in list(expected[part].items()):
            if "attn.q.weight" in tensor or "DenseReluDense" in tensor:
                scale = values.abs().max() / 448
                values = (values / scale).to(torch.float8_e4m3fn)
                expected[part][tensor] = values.float() * scale
                stored[tensor.replace(".weight", ".scale_weight")] = scale
                stored[tensor.replace(".weight", ".scale_input")] = torch.ones(1)
            stored[tensor] = values
        save_file({prefix + tensor: values for tensor, values in stored.items()}, file)
    parts = open_checkpoint(tmp_path / "models")
    for name, values in parts.transformer().named_parameters():
        assert torch.equal(values, expected["transformer"][name]), name
    for name, values in parts.text_encoder().model.named_parameters():
        assert torch.equal(values, expected["text_encoder"][name]), name


def test_a_text_encoder_without_its_tokenizer_is_told(of_comfy: Path, tmp_path: Path) -> None:
    shutil.copytree(of_comfy, tmp_path / "models")
    file = tmp_path / "models/text_encoders/umt5_xxl_fp16.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if name != "spiece_model"}, file)
    with pytest.raises(WeightsError, match="text_encoders holds no tokenizer; put google/umt5-xxl"):
        open_checkpoint(tmp_path / "models")
    save_file({**tensors, "spiece_model": torch.zeros(9, dtype=torch.uint8)}, file)
    with pytest.raises(WeightsError, match=r"umt5_xxl_fp16\.safetensors is no tokenizer"):
        open_checkpoint(tmp_path / "models").text_encoder()


# What does not fit


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--solver", "ddim"],
            "--solver ddim does not fit a wan model. Use unipc or dpm[+][+] or dpm[+][+]sde or euler",
        ),
        (["--shift", "0"], "--shift 0 does not fit a wan model"),
        (["--frames", "8", "--size", "48x32"], "--frames 8 does not fit: 4k [+] 1"),
        (["--size", "50x48"], "--size 50x48 does not fit: both must be multiples of 16"),
        (["--frames", "129", "--size", "48x32"], "--frames 129 does not fit: 4k [+] 1, and at most 125"),
        (["--size", "48x528"], "does not fit: this model's positions end at 512 pixels. Use 48x512"),
    ],
)
def test_misfits_are_told_before_any_work(
    model: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", model, *actions("looks"), "--steps", 2, *flags, "--out", tmp_path / "x") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_a_story_without_nouns_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    story = ["--background", "in there", "--character", "he", "--action", "runs"]
    assert run("--model", model, *story, "--steps", 2, "--size", "48x32", "--out", tmp_path / "x") == 2
    assert "The background 'in there' has no noun to look for" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_parts_of_two_families_do_not_mix(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(model, tmp_path / "mixed")
    values = tiny.vae().config
    (tmp_path / "mixed/vae/config.json").write_text(
        json.dumps({**values, "_class_name": "AutoencoderKLCogVideoX"})
    )
    assert run("--model", tmp_path / "mixed", *actions("looks"), "--out", tmp_path / "x") == 3
    assert "describes a AutoencoderKLCogVideoX, not a AutoencoderKLWan" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [("high_noise_model", "low_noise_model"), ("low_noise_model",)])
def test_a_half_of_wan_2_2_is_told(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kept: tuple[str, ...]
) -> None:
    folder, name = tmp_path / "half", "diffusion_pytorch_model.safetensors"
    shutil.copytree(original, folder)
    for half in kept:
        (folder / half).mkdir()
        shutil.copy(folder / name, folder / half / name)
    (folder / name).unlink()
    assert run("--model", folder, *actions("looks"), "--out", tmp_path / "x") == 3
    assert f"is a Wan2.2 ({min(kept)}), which has two denoisers" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "conv2.weight"])
def test_an_autoencoder_with_a_hole_is_told(
    original: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(original, tmp_path / "holed")
    state = torch.load(tmp_path / "holed/Wan2.1_VAE.pth", weights_only=True)
    torch.save(
        {key: tensor for key, tensor in state.items() if key != name}, tmp_path / "holed/Wan2.1_VAE.pth"
    )
    assert run("--model", tmp_path / "holed", *actions("looks"), "--out", tmp_path / "x") == 3
    assert f"Wan2.1_VAE.pth has no tensor '{name}'" in capsys.readouterr().err


def test_a_missing_shard_is_told(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(original, tmp_path / "half")
    index = tmp_path / "half/diffusion_pytorch_model.safetensors.index.json"
    names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-2.safetensors"]
    index.write_text(json.dumps({"weight_map": {"head.head.weight": names[0], "head.head.bias": names[1]}}))
    assert run("--model", tmp_path / "half", *actions("looks"), "--out", tmp_path / "x") == 3
    assert "diffusion_pytorch_model-2.safetensors is missing" in capsys.readouterr().err
