"""Training of the stage models: every part at toy size, killed and resumed, and the folder that it leaves."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from bachvid.models.attention import attend
from bachvid.models.checkpoint import open_checkpoint
from bachvid.models.cogvideox import CogVideoX
from bachvid.models.cogvideox import Stream as JointStream
from bachvid.models.grid import Grid
from bachvid.models.wan import Stream, Wan
from bachvid.stage import training
from bachvid.stage.arithmetic import EXACT, Arithmetic, attend_in_products
from bachvid.stage.captions import caption, corpus
from bachvid.stage.export import best_half, export, load_frozen, the_tokenizer
from bachvid.stage.family import COGVIDEOX, WAN, Lesson, add_noise, family_of
from bachvid.stage.inherit import inherit, rotary_order
from bachvid.stage.muon import Muon, orthogonal
from bachvid.stage.recipes import RECIPES, Recipe
from bachvid.stage.restore import restore
from bachvid.stage.sight import sight
from bachvid.stage.train import PARTS, make_task
from bachvid.stage.train_dit import Diet, DiTTask, leaders, levels
from bachvid.stage.training import Budget, Facts, Pace, State, Task, Team, Work, train
from bachvid.stage.watch import auc, caption_spans, sides_told, token_masks
from bachvid.stage.world import VERBS, sample_clip

CPU = torch.device("cpu")
SIZE: dict[str, Any] = {"height": 16, "width": 24}


def toy(model: str) -> Recipe:
    """The recipe of a shipped model with everything small, the same code paths."""
    big = RECIPES[model]
    vae: Any = {
        "tiny-cogvideox": {
            "block_out_channels": (8, 8, 8), "norm_num_groups": 4, "sample_height": 16, "sample_width": 24,
        },
        "tiny-wan": {"base_dim": 8, "dim_mult": (1, 1, 1)},
    }  # fmt: skip
    dit: Any = {"tiny-cogvideox": {"sample_height": 4, "sample_width": 6}, "tiny-wan": {"inner": 32}}
    vae = replace(big.vae.config, **vae[model])
    dit = replace(big.dit.config, layers=2, heads=2, head_width=16, text_width=16, **dit[model])
    return Recipe(
        replace(big.vae, config=vae, images=2, clips=1, images_only=0.5, **SIZE),
        replace(big.text, width=16, heads=2, layers=1, inner=16, batch=4),
        replace(
            big.dit,
            config=dit,
            images=Diet(1, 2, 4, 1),
            clips=Diet(5, 2, 2, 1),
            images_only=0.5,
            begins_as=None,
            **SIZE,
        ),
    )


class Killed(Exception):
    pass


def kill_at(task: Task, step: int) -> Task:
    """The task, dying at the start of a step."""
    loss = task.loss

    def dying(now: int, progress: float) -> tuple[Tensor, Facts]:
        if now == step:
            raise Killed
        return loss(now, progress)

    vars(task)["loss"] = dying
    return task


def make(model: str, part: str, folder: Path, arithmetic: Arithmetic = EXACT) -> Task:
    return make_task(part, toy(model), Work(folder), 0, Team(), CPU, arithmetic)


@pytest.fixture(scope="module", params=RECIPES)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trained(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which every part has had a few steps."""
    folder = tmp_path_factory.mktemp("work")
    for part in PARTS:
        train(make(model, part, folder), Budget(steps=4), Work(folder), Team())
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    model: str, part: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    for foundation in PARTS[: PARTS.index(part)]:
        (tmp_path / f"{foundation}.pt").write_bytes((trained / f"{foundation}.pt").read_bytes())
    with pytest.raises(Killed):
        train(kill_at(make(model, part, tmp_path), 3), Budget(steps=4), Work(tmp_path), Team())
    resumed, state = train(make(model, part, tmp_path), Budget(steps=4), Work(tmp_path), Team())
    whole = Work(trained).need(part)
    assert state.step == whole["state"]["step"] == 4
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, whole["averaged"][name]), name


def test_what_is_compiled_before_the_first_step_leaves_no_trace(
    model: str, trained: Path, tmp_path: Path
) -> None:
    for part in ("vae", "text"):
        (tmp_path / f"{part}.pt").write_bytes((trained / f"{part}.pt").read_bytes())
    task = make(model, "dit", tmp_path)
    assert isinstance(task, DiTTask)
    task.compiled = True  # it goes through all that compiles, with nothing to compile
    averaged, _ = train(task, Budget(steps=4), Work(tmp_path), Team())
    whole = Work(trained).need("dit")
    assert task.counts == whole["counts"]
    for name, weight in averaged.state_dict().items():
        assert torch.equal(weight, whole["averaged"][name]), name


def test_a_larger_budget_trains_on(model: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_bytes((trained / "text.pt").read_bytes())
    _, state = train(make(model, "text", tmp_path), Budget(steps=40), Work(tmp_path), Team())
    assert state.step == 40
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "start" and events[0]["step"] == 4


@pytest.mark.parametrize("first", [1.0, 0.4])
def test_a_lap_takes_the_rates_to_nothing_wherever_a_training_stands(first: float) -> None:
    pace, budget = Pace(decay=0.25, lap=first), Budget(more=10)
    for state in (State(step=900, seconds=30_000.0), State(step=900)):
        began = state.seconds
        budget.begin(state)
        shares = [budget.progress(state, began + 60 * minutes, pace) for minutes in (0, 5, 10, 11)]
        expected = [first, first / 2, 0, 0]
        assert [pace.rate(state.step, share) for share in shares] == pytest.approx(expected)
        assert shares[0] >= 0.75, "what belongs to a beginning, such as pictures alone, is over"


def test_a_killed_lap_goes_on_and_behind_one_that_ended_another_can_begin(
    model: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    (tmp_path / "text.pt").write_bytes((trained / "text.pt").read_bytes())
    began = Work(trained).need("text")["state"]["seconds"]
    with pytest.raises(Killed):
        train(kill_at(make(model, "text", tmp_path), 6), Budget(more=1e6), Work(tmp_path), Team())
    saved = Work(tmp_path).need("text")["state"]
    assert saved["step"] == 6 and saved["seconds"] > saved["lap"] == began
    blink = Budget(more=1e-9)  # over as soon as its first step is
    _, state = train(make(model, "text", tmp_path), blink, Work(tmp_path), Team())
    assert state.step == 6, "the old lap was longer than this one"
    assert Work(tmp_path).need("text")["state"]["lap"] is None
    _, state = train(make(model, "text", tmp_path), blink, Work(tmp_path), Team())
    assert state.step == 7


def test_beside_a_denoiser_only_the_decoder_learns(model: str, trained: Path, tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / f"{part}.pt").write_bytes((trained / f"{part}.pt").read_bytes())
    work = Work(tmp_path)
    saved = work.need("vae")
    before, (*_, measured) = saved["averaged"], saved["state"]["inspections"]
    measured["latent_std"] = 2.0  # as of another world: what the denoiser has learnt stays the measure
    work.save("vae", saved)
    vae, state = train(make(model, "vae", tmp_path), Budget(steps=6), work, Team())
    assert state.inspections[-1]["latent_std"] == 2.0
    same = {name: torch.equal(weight, before[name]) for name, weight in vae.state_dict().items()}
    assert all(equal for name, equal in same.items() if name.startswith(("encoder.", "conv1.")))
    assert not any(equal for name, equal in same.items() if name.startswith("decoder.conv"))


def test_a_denoiser_without_its_autoencoder_asks_nothing_of_one(
    model: str, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "dit.pt").write_bytes((trained / "dit.pt").read_bytes())
    make(model, "vae", tmp_path)


def test_the_exported_folder_is_a_pipeline_for_diffusers(model: str, trained: Path, tmp_path: Path) -> None:
    assert export(toy(model), Work(trained), 0, tmp_path) == list(PARTS)
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) == 1, "who may read the weights may read all of the folder"
    theirs = DiffusionPipeline.from_pretrained(str(tmp_path))
    ours = open_checkpoint(tmp_path)
    for prompt in [*corpus(random.Random(3), 20), "", "A Zebra, 12 quartz jugs!"]:
        ids = ours.text_encoder().tokenizer.encode(prompt).ids
        assert theirs.tokenizer(prompt).input_ids == [*ids, 1]
    clip = torch.randn(1, 3, 5, 16, 24)
    latents = ours.vae().to_latents(clip)
    mean = theirs.vae.encode(clip).latent_dist.mean  # B C T h w
    if model == "tiny-wan":
        centre, spread = (
            torch.tensor(values).view(-1, 1, 1, 1)
            for values in (theirs.vae.config.latents_mean, theirs.vae.config.latents_std)
        )
        expected = (mean - centre) / spread
    else:
        expected = mean.transpose(1, 2) * theirs.vae.config.scaling_factor
    torch.testing.assert_close(expected, latents, atol=1e-4, rtol=0)
    frames = 4 if model == "tiny-wan" else 5  # where time is not compressed, diffusers' Wan adds a frame
    video = theirs(
        "a quiet forest", height=16, width=32, num_frames=frames, num_inference_steps=2, output_type="pt"
    )
    assert video.frames.shape == (1, 5, 3, 16, 32)
    assert (ours.format.size, ours.format.frames, ours.format.fps) == ((24, 16), 5, 2)
    assert json.loads((tmp_path / "training.json").read_text())["parts"]["dit"]["steps"] == 4


def test_a_shipped_model_learns_on(model: str, trained: Path, tmp_path: Path) -> None:
    export(toy(model), Work(trained), 0, tmp_path / "shipped")
    work = Work(tmp_path / "work")
    assert restore(tmp_path / "shipped", work, lambda part: make(model, part, work.folder)) == list(PARTS)
    export(toy(model), work, 0, tmp_path / "again")
    for file in (tmp_path / "shipped").rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(tmp_path / "shipped")).read_bytes()
    task = make(model, "dit", work.folder)
    _, state = train(task, Budget(steps=6), work, Team())
    assert state.step == 6 and [entry["step"] for entry in state.inspections] == [4, 6]
    last = task.recipe.pace.rate(1, 5 / 6)  # optimizers are not shipped: theirs was the second step
    assert task.optimizers[1].param_groups[0]["lr"] == pytest.approx(last * task.recipe.rate)
    assert restore(tmp_path / "shipped", work, lambda part: make(model, part, work.folder)) == []
    assert work.need("dit")["state"]["step"] == 6, "what has learnt on is not thrown away"


def test_only_a_model_of_this_recipe_learns_on(model: str, trained: Path, tmp_path: Path) -> None:
    export(toy(model), Work(trained), 0, tmp_path / "shipped")
    other = next(name for name in RECIPES if name != model)
    work = Work(tmp_path / "work")
    with pytest.raises(ValueError, match="other shapes"):
        restore(tmp_path / "shipped", work, lambda part: make(other, part, work.folder))
    assert not list(work.folder.glob("*.pt"))
    (tmp_path / "shipped" / "training.json").unlink()
    with pytest.raises(ValueError, match="is missing"):
        restore(tmp_path / "shipped", work, lambda part: make(model, part, work.folder))


def test_a_denoiser_learns_upon_what_is_shipped(model: str, trained: Path, tmp_path: Path) -> None:
    export(toy(model), Work(trained), 0, tmp_path)
    shipped, frozen = open_checkpoint(tmp_path), load_frozen(toy(model), Work(trained), 0, CPU)
    for ours, theirs in ((frozen.vae, shipped.vae()), (frozen.text.model, shipped.text_encoder().model)):
        for name, weight in theirs.named_parameters():
            assert torch.equal(weight, ours.get_parameter(name)), name
    assert frozen.vae.config == shipped.vae_config


def test_a_denoiser_without_foundations_says_what_to_train_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--part vae"):
        make("tiny-wan", "dit", tmp_path)


def test_every_word_of_the_grammar_is_one_token_that_knows_its_characters(model: str, trained: Path) -> None:
    tokenizer = the_tokenizer(toy(model), Work(trained), 0)
    rng = random.Random(1)
    parts = caption(sample_clip(rng), rng)
    tokens = tokenizer.encode(parts.prompt())
    words = [parts.prompt()[start:end] for start, end in tokens.offsets]
    assert " ".join(words).replace(" ,", ",").replace(" .", ".") == parts.prompt()
    spans = caption_spans(parts, tokenizer)
    assert "".join(words[i] for i in spans.background) == parts.background.replace(" ", "")
    assert "".join(words[i] for i in spans.character) == parts.character.replace(" ", "")


@torch.no_grad()
def test_errors_weigh_what_the_decoder_shows_of_them(model: str) -> None:
    torch.manual_seed(0)
    config = toy(model).vae.config
    family = family_of(config)
    vae = family.vae(config).eval()
    for parameter in vae.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    video = torch.rand(2, 3, 1, 64, 96) * 2 - 1
    seen = sight(vae, video, family.channels, least=1e-3)
    mixes = F.normalize(torch.randn(12, 16), dim=1)
    weights = (mixes @ seen.mT).square().sum(1)
    latents = vae.to_latents(video).movedim(family.channels, -1)
    scattered = 0.01 * torch.randn(latents.shape[:-1]).unsqueeze(-1)
    plain = vae.to_video(latents.movedim(-1, family.channels))
    changes = [
        (vae.to_video((latents + scattered * mix).movedim(-1, family.channels)) - plain).square().mean()
        for mix in mixes
    ]
    agreement = torch.corrcoef(torch.stack((torch.stack(changes), weights)))[0, 1]
    assert agreement > 0.85 and weights.std() > 0.1
    assert seen.square().sum() == pytest.approx(16, rel=1e-3)
    floor = torch.linalg.eigvalsh((s := sight(vae, video, family.channels, least=0.5)).mT @ s)[0]
    assert floor > 0.5 / 1.5


@torch.no_grad()
def test_an_heir_sees_a_video_as_the_model_that_it_began_with() -> None:
    """Exactly so where the families agree: one head, nothing turned, centred queries and keys, no text."""
    small: Any = {"layers": 2, "heads": 1, "head_width": 16}
    trained = CogVideoX(replace(toy("tiny-cogvideox").dit.config, **small))
    heir = Wan(replace(toy("tiny-wan").dit.config, **small, inner=64))
    for parameter in trained.parameters():
        parameter.normal_(std=0.3)
    for block in trained.blocks:
        block.attention_norm.modulation.weight.zero_()
        block.feed_forward_norm.modulation.weight.zero_()
        for projection, norm in (("q", "norm_q"), ("k", "norm_k")):
            weight = block.attention.get_submodule(projection).weight
            weight.sub_(weight.mean(dim=0))
            block.attention.get_submodule(projection).bias.zero_()
            block.attention.get_submodule(norm).bias.zero_()
    inherit(heir, trained)
    for block in heir.blocks:
        block.cross_attn.o.weight.zero_()
        block.cross_attn.o.bias.zero_()
    video, none, grid = torch.randn(1, 6, 16), torch.zeros(1, 0, 16), Grid(1, 2, 3)
    still = torch.tensor((1.0, 0.0)).expand(6, 8, 2)
    theirs = JointStream(none, video, torch.randn(1, trained.config.time_width), None, grid)
    ours = Stream(video, torch.randn(1, 3, 16), none, torch.zeros(1, 1, 6, 16), still, grid)
    for mine, its in zip(heir.blocks, trained.blocks, strict=True):
        theirs, ours = its(theirs), mine(ours)
        torch.testing.assert_close(ours.video, theirs.video, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_an_heirs_channels_turn_with_the_axes_of_the_model_it_began_with(width: int) -> None:
    order, eighth, third = rotary_order(width).tolist(), width // 8, 2 * (width // 6)
    assert sorted(order) == list(range(width))
    axes = [(channel >= 2 * eighth) + (channel >= 5 * eighth) for channel in order]
    assert axes[-2 * third :] == [1] * third + [2] * third
    pairs = list(zip(order[::2], order[1::2], strict=True))
    assert all(odd == even + 1 and even % 2 == 0 for even, odd in pairs)


def test_an_heir_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="as many layers"):
        inherit(Wan(toy("tiny-wan").dit.config), CogVideoX(RECIPES["tiny-cogvideox"].dit.config))


def test_noise_and_velocity_give_the_latents_back() -> None:
    latents, noise, alphas_cumprod = (
        torch.randn(3, 1, 2, 4, 4),
        torch.randn(3, 1, 2, 4, 4),
        torch.tensor([1.0, 0.3, 0.0]),
    )
    noisy, velocity = add_noise(latents, noise, alphas_cumprod)
    share = alphas_cumprod.view(3, 1, 1, 1, 1)
    torch.testing.assert_close(share.sqrt() * noisy - (1 - share).sqrt() * velocity, latents)
    assert torch.equal(noisy[2], noise[2])


def test_a_lesson_is_what_the_sampler_will_ask() -> None:
    """At the time the model is told, the solver's clean estimate from a right answer is the latents."""
    latents, noise = torch.randn(3, 2, 4, 4, 4), torch.randn(3, 2, 4, 4, 4)
    share = torch.tensor([0.0, 0.4, 0.999])
    noisy, t, answer = WAN.lesson(latents, noise, share)
    sigma = (t / 1000).view(3, 1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * answer, latents)
    assert torch.equal(noisy[0], latents[0]) and t[1] == pytest.approx(1000 * 3 * 0.4 / 1.8)
    noisy, t, answer = COGVIDEOX.lesson(latents, noise, share)
    alphas_cumprod = COGVIDEOX.alphas_cumprod[t].view(3, 1, 1, 1, 1).float()
    torch.testing.assert_close(alphas_cumprod.sqrt() * noisy - (1 - alphas_cumprod).sqrt() * answer, latents)
    assert t.tolist() == [0, 400, 999]


@pytest.mark.parametrize("lean", [1.0, 0.6])
def test_the_levels_of_a_batch_are_spread_evenly_and_lean_to_noise(lean: float) -> None:
    for seed in range(20):
        share = levels(12, lean, torch.Generator().manual_seed(seed))
        assert ((share >= 0) & (share < 1)).all()
        evenly = share ** (1 / lean)
        assert (12 * evenly).long().unique().numel() == 12  # one in each twelfth
        assert ((share >= evenly - 1e-6).all()) and ((share > evenly + 0.01).any() == (lean < 1))


def test_one_frame_leads_some_clips_and_no_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    leads = leaders(4000, 5, 0.5, generator)
    assert leads.shape == (4000, 5) and int(leads.sum(1).max()) == 1
    assert leads.any(1).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert leads.sum(0).tolist() == pytest.approx([400] * 5, abs=100)  # any frame as often
    assert leaders(10, 5, 1.0, generator).any(1).all()
    assert not leaders(10, 1, 1.0, generator).any()


@pytest.mark.parametrize("slow", [{}, {"walks": 1.0}, {"walks": 0.4, "bows": 0.2}], ids=str)
def test_slow_verbs_are_drawn_as_often_as_asked_beside_what_chance_brings(
    model: str, trained: Path, tmp_path: Path, slow: Mapping[str, float]
) -> None:
    for part in ("vae", "text"):
        (tmp_path / f"{part}.pt").write_bytes((trained / f"{part}.pt").read_bytes())
    recipe = replace(toy(model), dit=replace(toy(model).dit, slow_verbs=slow))
    task = make_task("dit", recipe, Work(tmp_path), 0, Team(), CPU)
    assert isinstance(task, DiTTask)
    rng = random.Random(0)
    for pool in task.pools.values():
        drawn = Counter(pool.clip(task._entry(pool, 500, rng)).verb for _ in range(400))
        by_chance = (1 - sum(slow.values())) / len(VERBS)
        for verb in VERBS:
            assert drawn[verb] / 400 == pytest.approx(slow.get(verb, 0.0) + by_chance, abs=0.06)


def test_a_model_that_heeds_the_side_tells_walks_from_their_mirror_images() -> None:
    class Echo(nn.Module):
        def forward(self, noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return text.mean((1, 2)).view(-1, 1, 1, 1, 1).expand_as(noisy)

    answer = torch.ones(4, 2, 3, 4, 4)
    shown = Lesson(torch.zeros_like(answer), torch.zeros(4), answer)
    right, wrong = torch.ones(4, 5, 6), torch.zeros(4, 5, 6)
    mixed = torch.cat([right[:3], wrong[:1]])
    assert sides_told(Echo(), shown, right, wrong) == 1.0
    assert sides_told(Echo(), shown, wrong, right) == 0.0
    assert sides_told(Echo(), shown, mixed, torch.cat([wrong[:3], right[:1]])) == 0.75


def test_attention_in_products_is_attention() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8).unbind()
    freqs = torch.view_as_real(torch.polar(torch.ones(7, 4), torch.randn(7, 4)))
    for turned in (None, freqs):
        torch.testing.assert_close(attend_in_products(q, k, v, turned), attend(q, k, v, turned))


def test_bfloat16_teaches_the_same_and_leaves_weights_float32(
    model: str, trained: Path, tmp_path: Path
) -> None:
    for part in PARTS:
        (tmp_path / f"{part}.pt").write_bytes((trained / f"{part}.pt").read_bytes())
    slopes, predicted = {}, {}
    for exact in (True, False):
        task = make(model, "dit", tmp_path, Arithmetic(bfloat16=not exact))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.normal_(std=0.2, generator=generator)
        loss, _ = task.loss(7, 1.0)
        loss.backward()
        slopes[exact] = torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])
        predicted[exact] = loss.item()
        for optimizer in task.optimizers:
            optimizer.step()
        assert {p.dtype for p in task.model.parameters()} == {torch.float32}
    assert predicted[False] != predicted[True]  # it is really another arithmetic
    assert predicted[False] == pytest.approx(predicted[True], rel=0.02)
    assert F.cosine_similarity(slopes[False], slopes[True], dim=0) > 0.99


def test_muon_steps_are_orthogonal_and_as_large_as_adams() -> None:
    weight = nn.Parameter(torch.zeros(8, 4, 3, 3))
    optimizer = Muon([weight], lr=0.01)
    weight.grad = torch.randn(8, 4, 3, 3) * 1e-3
    optimizer.step()
    flat = weight.detach().flatten(1)
    singular = torch.linalg.svdvals(orthogonal(flat[None])[0])
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert 0.5 < flat.square().mean().sqrt() / (0.2 * 0.01) < 1.3
    assert (flat * weight.grad.flatten(1)).sum() < 0


def test_rates_warm_up_hold_and_fall_to_nothing() -> None:
    pace = Pace(warmup=10, decay=0.4)
    assert pace.rate(0, 0.0) == pytest.approx(0.1)
    assert pace.rate(500, 0.6) == 1.0
    assert pace.rate(500, 0.8) == pytest.approx(0.5)
    assert pace.rate(500, 1.0) == 0.0
    assert pace.average(10_000, 0.5) == pace.ema < pace.average(10_000, 0.9) < pace.last_ema


def test_half_precision_is_chosen_by_what_it_loses() -> None:
    assert best_half([torch.randn(100)]) is torch.float16
    assert best_half([torch.randn(100) * 1e6]) is torch.bfloat16


def test_auc_and_token_masks() -> None:
    truth = torch.tensor([True, True, False, False])
    assert auc(torch.tensor([4.0, 3.0, 2.0, 1.0]), truth) == 1.0
    assert auc(torch.tensor([1.0, 4.0, 2.0, 3.0]), truth) == pytest.approx(0.5)
    masks = torch.zeros(1, 5, 4, 4)
    masks[:, 0, :2, :2] = 1  # the first frame's corner
    masks[:, 1:4, 2:, 2:] = 1  # three of the four later frames
    from bachvid.models.grid import Grid

    assert token_masks(masks, Grid(2, 2, 2))[0].tolist() == [
        True,
        False,
        False,
        False,
        False,
        False,
        False,
        True,
    ]
