"""A run through the command line: diffusers' own latents, the group's files, and what bad input leaves.

pytest tests/test_run.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline
from safetensors.torch import load_file, save_file

from bachvid.__main__ import main
from bachvid.console import Console
from bachvid.errors import UsageError
from bachvid.evaluate.studio import Studio
from bachvid.folder import RunFolder
from bachvid.method.identity import Trajectory
from bachvid.method.recipe import PRESETS
from bachvid.models.checkpoint import open_checkpoint
from bachvid.pictures.files import count_frames
from bachvid.pictures.frames import to_frames

PARTS = ("a small kitchen,", "a red fox,", "looks outside.", "opens the window.")
SOLVERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of every kind, as diffusers saves it."""
    root = tmp_path_factory.mktemp("pipelines")
    tiny.train_tokenizer(root / "tokenizer")
    for kind in tiny.KINDS:
        pipeline = tiny.pipeline(root / "tokenizer", kind)
        pipeline.scheduler = CogVideoXDDIMScheduler(
            snr_shift_scale=3.0 if kind == "2b" else 1.0,
            timestep_spacing="trailing",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            clip_sample=False,
        )
        pipeline.transformer.register_to_config(max_text_seq_length=TEXT)
        pipeline.save_pretrained(root / kind)
    return {kind: root / kind for kind in tiny.KINDS}


TEXT = tiny.TEXT_LENGTH


def run(*flags: Any) -> int:
    return main(["run", "--device", "cpu", *(str(flag) for flag in flags)])


def story(*actions: str) -> list[str]:
    flags = ["--background", "a kitchen", "--character", "a fox"]
    return [*flags, *(part for action in actions for part in ("--action", action))]


CASES = [
    ("2b", "ddim", False, (64, 48)),
    ("2b", "dpm", True, (48, 80)),
    ("5b", "ddim", True, (48, 80)),
    ("5b", "dpm", False, (80, 48)),
    ("5b", "dpm", True, (112, 32)),
    ("1.5", "dpm", False, (80, 48)),
]


@pytest.mark.parametrize(("kind", "solver", "dynamic", "size"), CASES)
def test_every_step_has_the_latents_of_diffusers(
    pipelines: dict[str, Path], tmp_path: Path, kind: str, solver: str, dynamic: bool, size: tuple[int, int]
) -> None:
    pipeline = CogVideoXPipeline.from_pretrained(pipelines[kind])
    pipeline.scheduler = SOLVERS[solver].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    steps: list[torch.Tensor] = []

    def keep(_: Any, step: int, t: Any, seen: dict[str, Any]) -> dict[str, Any]:
        steps.append(seen["latents"])
        return {}

    pipeline(
        "a kitchen a fox looks",
        width=size[0], height=size[1], num_frames=9, num_inference_steps=5, guidance_scale=4.0,
        use_dynamic_cfg=dynamic, generator=torch.Generator("cpu").manual_seed(11), output_type="latent",
        max_sequence_length=TEXT, callback_on_step_end=keep,
    )  # fmt: skip
    flags = ["--model", pipelines[kind], *story("looks"), "--solver", solver, "--steps", 5, "--guidance", 4]
    flags += ["--size", f"{size[0]}x{size[1]}", "--frames", 9, "--seed", 11]
    flags += ["--dynamic-guidance"] if dynamic else []
    assert run(*flags, "--save-identity", "--out", tmp_path / "on") == 0
    assert run(*flags, "--mode", "off", "--out", tmp_path / "off") == 0

    ours = Trajectory.load(tmp_path / "on/identity/trajectory.safetensors").latents
    assert len(ours) == 6
    scale = max(1.0, max(float(step.abs().max()) for step in steps))  # random weights may blow up
    for mine, theirs in zip(ours[1:], steps, strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * scale
    off = load_file(tmp_path / "off/identity/latents.safetensors")["latents"]
    assert torch.equal(off, ours[-1])  # the method never touches the identity


@pytest.mark.parametrize("tiling", [False, True])
def test_a_studio_shows_no_frame_that_only_fills_a_patch(pipelines: dict[str, Path], tiling: bool) -> None:
    """Of 1.5's latents, the first may be there because patches have two."""
    checkpoint = open_checkpoint(pipelines["1.5"])
    frames = 4 * 2 + 1  # three latents, in four
    checkpoint = replace(
        checkpoint,
        config=replace(checkpoint.config, sample_frames=frames),
        vae_config=replace(checkpoint.vae_config, sample_height=96, sample_width=80),  # tiles that fit
    )
    studio = Studio.open(checkpoint, PRESETS["paper-cogvideox-5b"], "cpu", tiling=tiling)
    assert studio.shape[1] == 4
    latents = torch.randn(1, 4, studio.shape[2], 12, 14, generator=torch.manual_seed(0))
    with torch.no_grad():
        video = studio.vae.to_video(latents[:, 1:], tiling=tiling)[0]
    developed = studio.develop(latents)
    assert len(developed) == frames and np.array_equal(developed, to_frames(video))


@pytest.fixture(scope="module")
def made(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three videos and their twins."""
    out = tmp_path_factory.mktemp("run") / "fox"
    flags = [*story("looks", "opens", "opens the window"), "--steps", 4, "--with-vanilla", "--save-identity"]
    assert run("--model", pipelines["5b"], *flags, "--out", out) == 0
    return out


def test_a_run_writes_everything_it_promises(made: Path) -> None:
    names = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    for video in ("identity", "shots/01-opens", "shots/02-opens-the-window"):
        assert {f"{video}/video.mp4", f"{video}/mask.mp4", f"{video}/latents.safetensors"} <= names
        assert count_frames(made / video / "video.mp4") == 9
    assert {"shots/01-opens/match.png", "vanilla/01-opens/video.mp4", "contact.png", "manifest.json"} <= names
    assert not [name for name in names if name.endswith(".part")]


def test_every_setting_is_recorded_with_its_origin(made: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    assert config["steps"] == {"value": 4, "from": "flag"}
    assert config["size"] == {"value": [80, 48], "from": "checkpoint"}
    assert config["seed"] == {"value": 42, "from": "default"}
    assert config["recipe"]["from"] == "paper"  # no preset.json lies beside these weights
    assert config["recipe"]["value"]["steps"] == 4 and config["recipe"]["value"]["tau_mask"] < 4
    assert config["identity"] is None
    assert config["story"]["actions"] == ["looks", "opens", "opens the window"]


@pytest.mark.parametrize("source", ["replay", "cache"])
def test_every_source_makes_the_same_videos(
    made: Path, pipelines: dict[str, Path], tmp_path: Path, source: str
) -> None:
    flags = [*story("looks", "opens", "opens the window"), "--steps", 4, "--source", source]
    assert run("--model", pipelines["5b"], *flags, "--out", tmp_path / "again") == 0
    for name in ("identity", "shots/01-opens", "shots/02-opens-the-window"):
        first, second = (load_file(f / name / "latents.safetensors") for f in (made, tmp_path / "again"))
        assert torch.equal(first["latents"], second["latents"])


def test_a_later_run_joins_the_same_world(made: Path, pipelines: dict[str, Path], tmp_path: Path) -> None:
    flags = [*story("opens the window"), "--steps", 4, "--identity", made / "identity/trajectory.safetensors"]
    assert run("--model", pipelines["5b"], *flags, "--out", tmp_path / "later") == 0
    later = load_file(tmp_path / "later/shots/01-opens-the-window/latents.safetensors")["latents"]
    assert torch.equal(later, load_file(made / "shots/02-opens-the-window/latents.safetensors")["latents"])
    config = json.loads((tmp_path / "later/config.json").read_text())
    assert config["identity"] == str(made / "identity/trajectory.safetensors")
    assert config["source"] == {"value": "replay", "from": "identity"}
    assert config["seed"] == {"value": 42, "from": "identity"}


def test_who_joins_matches_by_a_recipe_of_its_own(
    made: Path, pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = json.loads((made / "config.json").read_text())["recipe"]["value"]
    (tmp_path / "preset.json").write_text(json.dumps({**recipe, "match_layers": [1], "branches": "both"}))
    flags = [*story("opens"), "--steps", 4, "--preset", tmp_path / "preset.json", "--out", tmp_path / "x"]
    joins = [*flags, "--identity", made / "identity/trajectory.safetensors"]
    assert run("--model", pipelines["5b"], *joins) == 0  # the file's own recipe matches by two layers
    assert run("--model", pipelines["5b"], *joins, "--source", "lockstep") == 2
    assert "does not fit --identity" in capsys.readouterr().err
    assert run("--model", pipelines["5b"], *flags, "--source", "cache") == 2
    assert "does not fit a recipe of both branches" in capsys.readouterr().err


def test_vanilla_videos_have_no_twins_and_groups_have_folders(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    lines = ["a kitchen#a fox#looks", "a kitchen#a fox#opens", "", "a small kitchen#a fox#looks"]
    (tmp_path / "story.txt").write_text("\n".join(lines))
    flags = ["--mode", "off", "--with-vanilla", "--steps", 2, "--out", tmp_path / "out"]
    assert run("--model", pipelines["5b"], tmp_path / "story.txt", *flags) == 0
    found = {str(path.parent.relative_to(tmp_path / "out")) for path in tmp_path.rglob("video.mp4")}
    assert found == {"01/identity", "01/shots/01-opens", "02/identity"}


def test_a_fault_in_the_last_group_is_told_before_the_first_is_made(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "story.txt").write_text("a kitchen#a fox#looks\n\na kitchen#a fox#" + "opens " * 300)
    flags = ["--steps", 2, "--out", tmp_path / "out"]
    assert run("--model", pipelines["5b"], tmp_path / "story.txt", *flags) == 2
    assert_one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_videos_that_are_done_outlive_an_interrupt(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mode "off" each is on disk when its own last step is taken."""
    follow = Console.follow

    def interrupted(self: Console, steps: Any, total: int, what: str) -> Any:
        for n, step in enumerate(follow(self, steps, total, what)):
            if n == 3:  # in the second of two steps of the second video
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Console, "follow", interrupted)
    flags = [*story("looks", "opens"), "--mode", "off", "--steps", 2, "--out", tmp_path / "out"]
    assert run("--model", pipelines["5b"], *flags) == 130
    assert [p.parent.name for p in tmp_path.rglob("latents.safetensors")] == ["identity"]


def test_the_work_goes_on_where_nobody_reads_any_more() -> None:
    """As behind `| head -1`."""
    source = "from bachvid.console import Console; c = Console(); [c.say('x' * 9999) for _ in range(99)]"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", source], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_an_identity_of_another_world_is_refused(
    made: Path, pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = made / "identity/trajectory.safetensors"
    flags = [*story("opens"), "--identity", identity, "--out", tmp_path / "x"]
    unread = damaged(pipelines, tmp_path / "model", "zero text")  # told before any weight is read
    assert run("--model", unread, *flags, "--steps", 5) == 2
    assert "made with steps 4, and this run has 5" in capsys.readouterr().err
    assert run("--model", pipelines["5b"], *flags, "--steps", 4, "--solver", "dpm") == 2
    assert "made with scheduler _class_name CogVideoXDDIMScheduler, and" in capsys.readouterr().err
    assert run("--model", pipelines["2b"], *flags, "--steps", 4) == 2
    assert "made with model " in capsys.readouterr().err


def damaged(pipelines: dict[str, Path], folder: Path, what: str) -> Path:
    """A copy of a good checkpoint with one thing wrong."""
    import shutil

    shutil.copytree(pipelines["5b"], folder)
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    if what == "missing":
        weights.unlink()
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    if what == "zero text":
        tokens = folder / "text_encoder/model.safetensors"
        save_file({name: tensor.zero_() for name, tensor in load_file(tokens).items()}, tokens)
    if what == "mismatched":
        weights.write_bytes((pipelines["1.5"] / weights.relative_to(folder)).read_bytes())
    return folder


@pytest.mark.parametrize("what", ["missing", "truncated", "mismatched", "zero text"])
def test_bad_weights_end_with_a_sentence_and_code_3(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    model = damaged(pipelines, tmp_path / "model", what)
    assert run("--model", model, *story("looks"), "--out", tmp_path / "out") == 3
    assert_one_sentence(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


MISTAKES = {
    "unknown model": (["--model", "no-such-model"], "There is no model 'no-such-model'"),
    "size": (["--size", "50x48"], "multiples of 16. Use 48x48"),
    "no size": (["--size", "big"], "Write it like 720x480"),
    "frames": (["--frames", "10"], "8k + 1, and at most 9. Use 9"),
    "too many frames": (["--frames", "4001"], "at most 9. Use 9"),
    "steps": (["--steps", "0"], "1 to 1000"),
    "fps": (["--fps", "0"], "1 to 240. Use 8"),
    "fast": (["--fps", "9999"], "1 to 240. Use 8"),
    "guidance": (["--guidance", "nan"], "--guidance nan does not fit"),
    "device without values": (["--device", "meta"], "'meta' is not usable"),
    "no text": (["--character", "caf\udce9"], "is no text in UTF-8"),
    "seed": (["--seed", "-1"], "--seed -1 does not fit"),
    "huge seed": (["--seed", str(2**64)], "Use 42"),
    "stray step": (["--steps", "61"], "Use 60"),
    "empty part": (["--character", " "], "empty character"),
    "no letters": (["--background", "​"], "background has no word"),
    "long prompt": (["--action", "opens " * 40], "over the model's limit of 11"),
    "preset": (["--preset", "none"], "There is no preset 'none'"),
    "preset of more layers": (["--preset", "paper-cogvideox-5b"], "of 2 layers, has no site joint 3."),
    "preset of another family": (["--preset", "paper-wan-14b"], "has no site cross 3."),
    "identity of nothing": (["--mode", "off", "--save-identity"], "does not fit --mode off"),
    "device": (["--device", "tpu"], "'tpu' is not usable here"),
    "story twice": (["some.txt"], "were both given"),
    "missing identity": (["--identity", "no/file"], "There is no file no/file"),
}


@pytest.mark.parametrize(("flags", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_bad_input_ends_with_a_sentence_and_code_2(
    pipelines: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
) -> None:
    out = tmp_path / "out"
    assert run("--model", pipelines["5b"], *story("looks"), "--out", out, *flags) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert_one_sentence(said)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "place", "cure"),
    [
        ([], "In group 2: The prompt has", "shorten the action"),
        (["--negative", "opens " * 40], "bachvid: --negative does not fit: the prompt has", "shorten it to"),
    ],
    ids=["in the story", "the negative"],
)
def test_a_prompt_that_is_too_long_is_told_before_any_weight_is_read(
    pipelines: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    place: str,
    cure: str,
) -> None:
    model, stories = damaged(pipelines, tmp_path / "model", "zero text"), tmp_path / "stories.txt"
    action = "opens" if flags else "opens " * 40
    stories.write_text(f"a kitchen#a fox#looks\n\na kitchen#a fox#{action}\n")
    assert run("--model", model, stories, "--out", tmp_path / "out", *flags) == 2
    said = capsys.readouterr().err
    assert place in said and cure in said
    assert_one_sentence(said)


def test_a_folder_that_is_taken_or_cannot_be_written_is_refused(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    assert run("--model", pipelines["5b"], *story("looks"), "--out", tmp_path / "taken") == 2
    assert "not empty" in capsys.readouterr().err
    assert run("--model", pipelines["5b"], *story("looks"), "--out", tmp_path / "taken/file/x") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "taken/file").read_text() == "mine"


def test_a_folder_is_filled_by_one_run_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs/out")
    with folder.claimed():
        with pytest.raises(UsageError, match="out is another run's"), RunFolder(folder.path).claimed():
            pass
        folder.write_json("config.json", {})
        folder.write_json("identity/latents.json", {})
    late = "out is another run's by now"  # it was chosen while it was empty
    with pytest.raises(UsageError, match=late), folder.claimed():
        pass
    assert {file.name for file in folder.path.iterdir()} == {"config.json", "identity"}


@pytest.mark.parametrize("made", [False, True])
def test_a_failure_leaves_what_was_made_and_nothing_else(tmp_path: Path, made: bool) -> None:
    folder = RunFolder(tmp_path / "runs/out")
    with pytest.raises(KeyboardInterrupt), folder.claimed():
        folder.write_json("config.json", {})
        if made:
            folder.write_json("identity/latents.json", {})
        raise KeyboardInterrupt
    left = {file.name for file in tmp_path.rglob("*")}
    assert left == ({"runs", "out", "config.json", "identity", "latents.json"} if made else set())


@pytest.mark.parametrize("change", [{"beta_start": "x"}, {"_class_name": None}, {"num_train_timesteps": "x"}])
def test_a_scheduler_that_cannot_be_read_is_told(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    shutil.copytree(pipelines["5b"], tmp_path / "model")
    file = tmp_path / "model/scheduler/scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert run("--model", tmp_path / "model", *story("looks"), "--out", tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert str(file) in said
    assert_one_sentence(said)


def assert_one_sentence(said: str) -> None:
    """No traceback, and nothing but one line for people."""
    lines = [line for line in said.splitlines() if line.startswith("bachvid: ")]
    assert len(lines) == 1 and "Traceback" not in said
