"""Checkpoints of either layout, whole, sharded, damaged and mixed up: pytest tests/test_checkpoint.py"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bachvid.models.checkpoint import Checkpoint, WeightsError, open_checkpoint, save_index, save_model
from bachvid.models.cogvideox import CogVideoXConfig
from bachvid.models.cogvideox_vae import CogVideoXVAEConfig
from bachvid.models.wan import WanConfig
from bachvid.models.weights import Weights, load
from bachvid.sampling.sampler import read_sampler

PATCHES = "mixins.patch_embed.proj.weight"
T = torch.tensor([499])
LATENTS = torch.randn(1, 4, 4, 6, 10, generator=torch.Generator().manual_seed(1))
PROMPT = "a red fox in a small kitchen stands."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.train_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(tokenizer: Path) -> CogVideoXPipeline:
    return tiny.pipeline(tokenizer)


@pytest.fixture(scope="module")
def good(pipe: CogVideoXPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the diffusers layout; its transformer is in shards."""
    folder = tmp_path_factory.mktemp("good")
    pipe.save_pretrained(folder)
    shutil.rmtree(folder / "transformer")
    pipe.transformer.save_pretrained(folder / "transformer", max_shard_size="40KB")
    return folder


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_a_diffusers_folder_gives_the_same_models(
    tokenizer: Path, tmp_path: Path, kind: str, shard: str
) -> None:
    pipe = tiny.pipeline(tokenizer, kind)
    pipe.save_pretrained(tmp_path, max_shard_size=shard)
    shards = len(list((tmp_path / "transformer").glob("*.safetensors")))
    assert shards == 1 if shard == "1GB" else shards > 2
    parts = open_checkpoint(tmp_path)
    assert (parts.layout, parts.name) == ("diffusers", "cogvideox")
    assert parts.config == CogVideoXConfig.from_dict(pipe.transformer.config)
    assert read_sampler(parts.scheduler, 10).schedule.timesteps == (999, *range(899, 0, -100))
    check_same(parts, pipe)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_an_original_release_gives_the_same_models(tokenizer: Path, tmp_path: Path, kind: str) -> None:
    scale, frames = (1.15258426, 49) if kind == "2b" else (0.7, 81 if kind == "1.5" else 49)
    height, width = (300, 300) if kind == "1.5" else (60, 90)
    pipe = tiny.pipeline(tokenizer, kind)
    pipe.register_modules(
        transformer=tiny.transformer(
            kind, sample_height=height, sample_width=width, sample_frames=frames, max_text_seq_length=226
        ),
        vae=tiny.vae(
            block_out_channels=(32, 32, 64, 64), norm_num_groups=32, scaling_factor=scale,
            sample_height=480, sample_width=720,
        ),
    )  # fmt: skip
    save_original(pipe, tmp_path)
    parts = open_checkpoint(tmp_path)
    assert (parts.layout, parts.name) == ("original", "cogvideox")
    assert parts.config == CogVideoXConfig.from_dict(pipe.transformer.config)
    assert parts.vae_config == CogVideoXVAEConfig.from_dict(pipe.vae.config)
    assert parts.scheduler["snr_shift_scale"] == (3.0 if kind == "2b" else 1.0)
    assert read_sampler(parts.scheduler, 50).schedule.timesteps[:2] == (999, 979)
    check_same(parts, pipe)


def save_original(pipe: CogVideoXPipeline, folder: Path) -> None:
    """Write the parts as the original release has them: wrapped, prefixed, with more than parameters."""
    state = tiny.sat_transformer(pipe.transformer.state_dict())
    if not pipe.transformer.config.use_rotary_positional_embeddings:
        state["mixins.pos_embed.pos_embedding"] = torch.zeros(1, 226, 32)
    state["mixins.pos_embed.freqs_sin"] = torch.zeros(4)
    save_pickled({"module": prefixed(state), "iteration": 1}, folder / "t2v" / "1000" / "states.pt")
    patches = state[PATCHES]
    of_images = {**state, PATCHES: torch.cat((patches, patches), dim=1)}  # image to video has more channels
    save_pickled({"module": prefixed(of_images)}, folder / "i2v" / "1000" / "states.pt")
    vae = {**tiny.sat_vae(pipe.vae.state_dict()), "loss.logvar": torch.zeros(1)}
    save_pickled({"state_dict": vae, "epoch": 3}, folder / "3d-vae.pt")
    pipe.text_encoder.save_pretrained(folder / "xxl")
    shutil.copy(pipe.tokenizer.vocab_file, folder / "xxl")


def drop(file: Path, name: str) -> None:
    """Save a pickled autoencoder again without one of its tensors."""
    state = torch.load(file, weights_only=True)
    del state["state_dict"][name]
    torch.save(state, file)


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}


def save_pickled(values: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(values, file)


@torch.no_grad()
def check_same(parts: Checkpoint, pipe: CogVideoXPipeline) -> None:
    """Every part on disk computes what diffusers' part does."""
    length = parts.config.text_length
    text = parts.text_encoder().encode(PROMPT)
    expected = pipe.encode_prompt(PROMPT, max_sequence_length=length, device=torch.device("cpu"))[0]
    torch.testing.assert_close(text, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(parts.transformer()(LATENTS, T, text), denoised(pipe, text), rtol=0, atol=1e-5)
    z = LATENTS[:, :3].transpose(1, 2)
    torch.testing.assert_close(parts.vae().decode(z), pipe.vae.decode(z).sample, rtol=0, atol=1e-4)


def denoised(pipe: CogVideoXPipeline, text: Tensor) -> Tensor:
    rope = None
    if pipe.transformer.config.use_rotary_positional_embeddings:
        height, width = (8 * n for n in LATENTS.shape[-2:])
        rope = pipe._prepare_rotary_positional_embeddings(
            height, width, LATENTS.shape[1], torch.device("cpu")
        )
    return pipe.transformer(LATENTS, text, T, image_rotary_emb=rope).sample


@torch.no_grad()
def test_what_is_saved_is_what_diffusers_loads(good: Path, tmp_path: Path) -> None:
    parts = open_checkpoint(good)
    save_model(parts.transformer(), tmp_path / "transformer")
    save_model(parts.vae(), tmp_path / "vae")
    parts.text_encoder().save(tmp_path)
    save_index(tmp_path, "CogVideoXPipeline", parts.scheduler)
    pipe = CogVideoXPipeline.from_pretrained(tmp_path)
    assert pipe.scheduler.config.snr_shift_scale == 1.0 and pipe.tokenizer.model_max_length == 12
    check_same(parts, pipe)
    check_same(open_checkpoint(tmp_path), pipe)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_weights_can_be_saved_and_loaded_in_another_dtype(good: Path, tmp_path: Path) -> None:
    parts = open_checkpoint(good)
    save_model(parts.transformer(), tmp_path, torch.bfloat16)
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    half = dict(parts.transformer(torch.bfloat16).named_parameters())
    for name, parameter in parts.transformer().named_parameters():
        assert torch.equal(half[name], parameter.to(torch.bfloat16))


def test_loaded_models_are_ready_to_use_and_let_go_of_the_file(
    pipe: CogVideoXPipeline, tmp_path: Path
) -> None:
    save_original(pipe, tmp_path)
    parts = open_checkpoint(tmp_path)
    file = parts.transformer_path
    model = parts.transformer()
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with file.open("r+b") as opened:  # a file that is still mapped would show through
        opened.write(bytes(file.stat().st_size))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_pickled_shards_load(pipe: CogVideoXPipeline, good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "vae").glob("*.safetensors"):
        file.unlink()
    names = list(pipe.vae.state_dict())
    shards = {"one.bin": names[:50], "two.bin": names[50:]}
    for shard, some in shards.items():
        save_pickled({name: pipe.vae.state_dict()[name] for name in some}, tmp_path / "vae" / shard)
    weight_map = {name: shard for shard, some in shards.items() for name in some}
    write(tmp_path / "vae" / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    ours = open_checkpoint(tmp_path).vae()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in pipe.vae.state_dict().items())


def test_parameters_that_are_one_stay_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight

    save_file({"one.weight": torch.eye(2)}, tmp_path / "tied.safetensors")
    model = load(Tied, Weights(tmp_path / "tied.safetensors"))
    assert model.two.weight is model.one.weight and torch.equal(model.one.weight, torch.eye(2))


def write(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values))


def edit(file: Path, **changes: Any) -> None:
    write(file, {**json.loads(file.read_text()), **changes})


def edit_tensors(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def index(folder: Path) -> Path:
    return next(folder.glob("transformer/*.index.json"))


def edit_weight_map(folder: Path, changes: dict[str, str]) -> None:
    edit(index(folder), weight_map={**json.loads(index(folder).read_text())["weight_map"], **changes})


def shard(folder: Path) -> Path:
    return sorted(folder.glob("transformer/*.safetensors"))[1]


def cut(file: Path, size: int = -100) -> None:
    file.write_bytes(file.read_bytes()[:size])


VAE = "vae/diffusion_pytorch_model.safetensors"
CONV = "decoder.conv_in.conv.bias"


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def pickled_vae(folder: Path, values: Any) -> None:
    (folder / VAE).unlink()
    save_pickled(values, folder / "vae" / "vae.pt")


def lead_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to("gone")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "is no folder; give one"),
    "nothing in it": (lambda f: [shutil.rmtree(f), f.mkdir()], "holds no text-to-video CogVideoX or Wan"),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), r"transformer/config\.json is missing"),
    "no vae weights": (lambda f: (f / VAE).unlink(), r"/vae holds no \.safetensors \.pt"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), r"scheduler_config\.json is missing"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), r"/tokenizer has no spiece\.model"),
    "another kind": (lambda f: edit(f / "model_index.json", _class_name="MochiPipeline"),
        r"describes a MochiPipeline, not a CogVideoXPipeline or WanPipeline; only text-to-video is read"),
    "two transformers": (
        lambda f: edit(f / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]),
        "names a second transformer, as Wan2.2 has"),
    "a folder of two transformers": (lambda f: shutil.copytree(f / "transformer", f / "transformer_2"),
        "transformer_2 is a second transformer, as Wan2.2 has"),
    "an index that leads nowhere": (lambda f: lead_nowhere(f / "model_index.json"),
        r"model_index\.json is a link to gone, which is not there; copy the checkpoint with"),
    "weights that lead nowhere": (lambda f: lead_nowhere(f / VAE), "is a link to gone, which is not there"),
    "a folder too high": (lambda f: [shutil.copytree(f, f / "x"), (f / "model_index.json").unlink(),
        shutil.rmtree(f / "transformer")], r"give .*/x, which has one"),
    "a transformer alone": (lambda f: [shutil.copytree(f / "transformer", f, dirs_exist_ok=True),
        (f / "model_index.json").unlink(), shutil.rmtree(f / "transformer"), shutil.rmtree(f / "vae")],
        "a denoiser alone goes as transformer/ into a copy"),
    "a LoRA": (
        lambda f: [shutil.rmtree(f), f.mkdir(), save_file({"a": torch.ones(1)}, f / "my_LoRA.safetensors")],
        "a LoRA must be merged into its checkpoint first"),
    "quantised": (lambda f: edit_tensors(f / VAE, lambda t: t.update({CONV + "_absmax": torch.zeros(1)})),
        r"/vae is quantised \(it has .*absmax\)"),
    "another family": (lambda f: edit(f / "model_index.json", _class_name="WanPipeline"),
        r"transformer/config\.json describes a CogVideoXTransformer3DModel, not a WanTransformer3DModel"),
    "a vae of another family": (lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderKLWan"),
        r"vae/config\.json describes a AutoencoderKLWan, not a AutoencoderKLCogVideoX"),
    "vae in the place of the transformer": (
        lambda f: shutil.copy(f / "vae" / "config.json", f / "transformer"),
        r"transformer/config\.json describes a AutoencoderKLCogVideoX, not a CogVideoXTransformer3DModel"),
    "half a config": (lambda f: cut(f / "vae" / "config.json", 40), r"vae/config\.json is not JSON"),
    "a list for a config": (lambda f: write(f / "vae" / "config.json", []), "holds no JSON object"),
    "another activation": (lambda f: edit(f / "transformer" / "config.json", activation_fn="gelu"),
        r"transformer/config\.json: activation_fn='gelu'"),
    "image to video": (lambda f: edit(f / "transformer" / "config.json", in_channels=8),
        r"transformer/config\.json: .*text-to-video"),
    "another vae": (lambda f: edit(f / "vae" / "config.json", latent_channels=8),
        "vae has 8 channels, the transformer beside it needs 4"),
    "another t5": (lambda f: edit(f / "text_encoder" / "config.json", d_model=64),
        "text_encoder has 64 text channels, the transformer beside it needs 32"),
    "no t5": (lambda f: edit(f / "text_encoder" / "config.json", model_type="umt5"), "describes a umt5"),
    "shard missing": (lambda f: shard(f).unlink(), r"-00002-of-.*safetensors is missing, .* lists it; fetch"),
    "shard cut short": (lambda f: cut(shard(f)), r"-00002-of-.*safetensors \([\d,]+ bytes\) cannot be read"),
    "shard only pointed to": (lambda f: shard(f).write_text("version https://git-lfs"), "run `git lfs pull`"),
    "shard of another": (lambda f: edit_tensors(shard(f), dict.popitem), "does not hold the .* tensors"),
    "index leads out": (
        lambda f: edit_weight_map(f, {"norm_final.bias": f"../../{f.name}/{VAE}"}),
        r"index\.json names '\.\./\.\./.*', which is no weights file beside it"),
    "index leads to a root": (
        lambda f: edit_weight_map(f, {"norm_final.bias": str(f / VAE)}),
        "which is no weights file beside it"),
    "index without a map": (
        lambda f: write(index(f), {"weights": 1}), "has no weight_map"),
    "a second index": (
        lambda f: shutil.copy(index(f), f / "transformer" / "b.safetensors.index.json"),
        "more than one index"),
    "two sets of weights": (lambda f: shutil.copy(f / VAE, f / "vae" / "copy.safetensors"),
        "/vae holds .* and 241 more in more than one file; keep one set"),
    "tensor missing": (lambda f: edit_tensors(f / VAE, lambda t: t.pop(CONV)),
        rf"/vae does not fit its config: it lacks {CONV}; take"),
    "tensor too many": (lambda f: edit_tensors(f / VAE, lambda t: t.update(extra=torch.zeros(1))),
        "/vae does not fit its config: it has extra too many; take"),
    "tensor of another shape": (lambda f: edit_tensors(f / VAE, lambda t: t.update({CONV: torch.zeros(3)})),
        rf"/vae does not fit its config: {CONV} is \(3,\) instead of \(16,\); take"),
    "config of another size": (lambda f: edit(f / "transformer" / "config.json", num_layers=3),
        r"lacks transformer_blocks\.2\..* and 2\d more; take both from one download"),
    "code among tensors": (lambda f: pickled_vae(f, {"a": Trap()}), r"vae\.pt holds more than tensors"),
    "no tensors": (lambda f: pickled_vae(f, {"a": 1}), r"vae\.pt is no table of tensors"),
    "pickle cut short": (lambda f: [pickled_vae(f, {}), cut(f / "vae" / "vae.pt")], "cannot be read: Py"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_sentence(
    good: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(good, folder)
    harm, message = DAMAGES[damage]
    harm(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=message) as caught:
        parts = open_checkpoint(folder)
        parts.vae(), parts.transformer(), parts.text_encoder().model
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: cut(f / "t2v" / "1000" / "states.pt"), r"t2v/1000/states\.pt .* cannot be read"),
        (lambda f: shutil.rmtree(f / "t2v"), "holds no text-to-video CogVideoX or Wan"),
        (
            lambda f: shutil.copytree(f / "t2v", f / "again"),
            "must hold one transformer, and there is again/.*, t2v/",
        ),
        (lambda f: (f / "3d-vae.pt").unlink(), "holds no VAE; put 3d-vae.pt there"),
        (
            lambda f: drop(f / "3d-vae.pt", "encoder.conv_out.conv.weight"),
            r"3d-vae\.pt has no tensor 'encoder\.conv_out\.conv\.weight'",
        ),
        (lambda f: shutil.rmtree(f / "xxl"), "holds no T5; put t5-v1_1-xxl"),
        (lambda f: (f / "xxl" / "spiece.model").unlink(), r"xxl has no spiece\.model"),
    ],
)
def test_damage_of_an_original_release_is_told(
    pipe: CogVideoXPipeline, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    save_original(pipe, tmp_path)
    damage(tmp_path)
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(tmp_path)


def test_files_of_others_are_passed_over(pipe: CogVideoXPipeline, tmp_path: Path) -> None:
    """An optimizer's state, and what a download or macOS leaves behind."""
    save_original(pipe, tmp_path)
    (tmp_path / "t2v" / "._states.pt").write_bytes(b"no weights")
    (tmp_path / "optimizer.bin").write_bytes(b"no weights either")
    for number, text in enumerate(("error code: 1015", "Repository not found", "the 1\nof 2", "hello", "")):
        (tmp_path / f"{number}.bin").write_text(text)  # downloads that failed, and a vocabulary
    assert open_checkpoint(tmp_path).family == "cogvideox"


def test_weights_in_the_older_format_of_pickles_are_read(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "old")
    tensors = load_file(tmp_path / "old" / VAE)
    (tmp_path / "old" / VAE).unlink()
    torch.save(tensors, tmp_path / "old/vae/vae.bin", _use_new_zipfile_serialization=False)
    for (name, ours), (_, theirs) in zip(
        open_checkpoint(good).vae().named_parameters(),
        open_checkpoint(tmp_path / "old").vae().named_parameters(),
        strict=True,
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("kind", [CogVideoXConfig, WanConfig])
def test_numbers_that_a_config_leaves_out_are_those_of_diffusers(kind: Any) -> None:
    """The first release of the 2B does not say that its positions are not rotary."""
    classes = {CogVideoXConfig: CogVideoXTransformer3DModel, WanConfig: WanTransformer3DModel}
    with torch.device("meta"):
        theirs = dict(classes[kind](num_layers=1).config)
    assert kind.from_dict({}) == kind.from_dict({**theirs, "num_layers": kind.from_dict({}).layers})
    assert kind.from_dict({"out_channels": None}) == kind.from_dict({})
