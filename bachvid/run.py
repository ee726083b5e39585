"""One group of videos, top to bottom: prompts, latents, pixels, and what a person looks at.

python -m bachvid.run                                       # the shipped story on the shipped model
python -m bachvid.run STORY.txt --model FOLDER              # background#character#action lines
python -m bachvid.run --background "..." --character "..." --action "..." --action "..."
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bachvid.album import make_album
from bachvid.console import Console
from bachvid.errors import UsageError, guarded
from bachvid.evaluate.agreement import in_words, read_group
from bachvid.evaluate.studio import is_of_stage
from bachvid.folder import CONFIG, Made, RunFolder, manifest, slug
from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.group import Group, vanilla
from bachvid.method.identity import Trajectory, fingerprint
from bachvid.method.prompts import Written, encode_prompts, write_prompts
from bachvid.method.scout import Scouted
from bachvid.method.spans import Parts
from bachvid.method.words import Ask, Words
from bachvid.models.checkpoint import Checkpoint, WeightsError, open_checkpoint
from bachvid.models.parts import VAE
from bachvid.models.text import TextEncoder
from bachvid.nouns import noun_model
from bachvid.pictures.frames import to_frames
from bachvid.sampling.guidance import dynamic, static
from bachvid.sampling.sampler import read_sampler
from bachvid.settings import Settings, resolve
from bachvid.settings import add_arguments as add_settings
from bachvid.story import Story, find_model, find_stories, of_each


def main(args: argparse.Namespace) -> int:
    """Make what was asked for and say where it lies."""
    model = find_model(args.model)
    checkpoint = open_checkpoint(model)
    settings = resolve(args, checkpoint, model)
    check_flags(args, settings)
    joined = Trajectory.load(args.identity) if args.identity else None
    if joined:
        joined.check({**joined.world, **settings.chosen_world()})  # the rest when the model is known
        settings = settings.joining(joined.seed)
    stories = find_stories(args, model)
    nouns = [word.strip() for word in (args.nouns or "").split(",") if word.strip()]
    ask = noun_model(args.noun_model) if args.noun_model else None
    of_stage = is_of_stage(model)  # fast enough for twins, and readable exactly
    wanted = of_stage if args.with_vanilla is None else args.with_vanilla
    twins = wanted and settings.recipe.mode != "off"  # there the videos are their own twins
    group = partial(
        Run,
        model=model,
        checkpoint=checkpoint,
        settings=settings,
        identity=args.identity,
        joined=joined,
        with_vanilla=twins,
        of_stage=of_stage,
        save_identity=args.save_identity,
        nouns=nouns,
        ask=ask,
    )
    folders = RunFolder.choose_all(args.out, [story.background for story in stories])
    runs = [group(story=story, folder=folder) for story, folder in zip(stories, folders, strict=True)]
    encode(runs)
    for run in runs:
        with run.folder.claimed():
            run.make()
    return 0


def check_flags(args: argparse.Namespace, settings: Settings) -> None:
    """Raise UsageError for flags that mean nothing beside another."""
    if args.save_identity and settings.recipe.mode == "off":
        raise UsageError("--save-identity does not fit --mode off: nothing borrows. Leave one of them out.")
    if args.identity and args.source not in (None, "replay"):
        raise UsageError(f"--source {args.source} does not fit --identity, which is replayed. Leave it out.")


def encode(runs: Sequence[Run]) -> None:
    """Gives all runs their prompts; a word wrong in the last is told before a weight is read."""
    checkpoint, settings = runs[0].checkpoint, runs[0].settings
    encoder = checkpoint.text_encoder(settings.dtype, settings.device)
    written = of_each(runs, partial(Run.write, encoder=encoder))
    try:
        negative = encoder.encode(encoder.clean(settings.negative))
    except WeightsError:
        raise
    except ValueError as error:
        raise UsageError(f"--negative does not fit: {error}") from error
    for run, prompts in zip(runs, written, strict=True):
        run.prompts, run.negative = encode_prompts(encoder, prompts), negative
    encoder.unload()


@dataclass(kw_only=True)
class Run:
    """Everything one group needs; `make` tells the story."""

    model: Path
    checkpoint: Checkpoint
    settings: Settings
    identity: Path | None  # the file of an identity from an earlier run,
    joined: Trajectory | None  # and what it holds
    with_vanilla: bool
    of_stage: bool  # the model knows the stage world, so its videos can be read exactly
    save_identity: bool
    nouns: Sequence[str]  # to look for in the masks, unless the story marks some
    ask: Ask | None  # a language model that finds them
    story: Story
    folder: RunFolder
    console: Console = field(default_factory=Console)
    prompts: Sequence[Prompt] = field(init=False, repr=False)  # the identity's first
    negative: Tensor = field(init=False, repr=False)

    def write(self, encoder: TextEncoder) -> list[Written]:
        """Every prompt; that of an earlier run's identity keeps the order it was made with."""
        known = []
        if self.joined:  # its mask is known too, so whatever words the story names are not looked for in it
            known = write_prompts(encoder, [self.joined.parts], replace(self.joined.recipe, words="all"))
        chosen = partial(self.words, clean=encoder.clean)
        return [*known, *write_prompts(encoder, self.story.videos, self.settings.recipe, chosen)]

    def make(self) -> None:
        """Text to latents, latents to pixels, pixels to files."""
        with self.console.stage("load"):
            denoiser = self.load_denoiser()
            vae = self.checkpoint.vae(torch.float32, self.settings.device)
            if self.joined:
                self.joined.check(self.world(denoiser))
        self.folder.write_json(CONFIG, self.config())
        with self.console.stage("denoise"):
            videos = self.denoise(denoiser)
        with self.console.stage("vanilla"):
            twins = self.twins(denoiser) if self.with_vanilla else []
        del denoiser  # decoding is where memory runs out
        with self.console.stage("decode"):
            self.decode(vae, [*videos, *twins])
        with self.console.stage("pictures"):
            contact = make_album(self.folder, videos, twins, self.settings.fps)
        if self.of_stage and self.settings.frames > 1:
            with self.console.stage("reading"):
                self.measure(videos, twins)
        self.folder.write_json("manifest.json", manifest([*videos, *twins], self.console.seconds))
        for video in videos:
            self.console.say(f"{video.name}/video.mp4" + (f": {video.note}" if video.note else ""))
        if not self.checkpoint.rotary and self.settings.recipe.mode in ("both", "fg"):
            self.console.say("This model's positions are not rotary: keys are borrowed as they are (Eq. 12).")
        self.console.say(self.console.summary())
        self.console.say(f"Look at {contact}")

    def words(self, video: Parts, clean: Callable[[str], str] = str) -> Words | None:
        """The words that stand for the place and the character in the masks; None: all of them."""
        place, character = (list(map(clean, words)) for words in self.story.marked)
        return video.words(self.settings.recipe.words, (place, character), self.nouns, self.ask)

    def load_denoiser(self) -> Denoiser:
        """The denoiser with its sampler and guidance, and the shape of one video's latents."""
        settings = self.settings
        return Denoiser(
            model=self.checkpoint.transformer(settings.dtype, settings.device),
            sampler=read_sampler(settings.scheduler, settings.steps),
            negative=self.negative,
            shape=self.checkpoint.latent_shape(settings.size, settings.frames),
            scale=settings.guidance,
            guidance=dynamic if settings.dynamic_guidance else static,
            wide=self.checkpoint.wide,
        )

    def denoise(self, denoiser: Denoiser) -> list[Made]:
        """The group's latents, each on disk as soon as it is final; in mode "off" without the method."""
        recipe, prompts, named = self.settings.recipe, self.prompts, self.named("shots")
        seeds = self.seeds(len(prompts))
        if recipe.mode == "off":
            return self.follow_vanilla(denoiser, prompts, seeds, named)
        if self.settings.source == "replay":
            identity = self.known_identity(denoiser, prompts[0], seeds[0])
            lender = self.keep_identity(denoiser, identity)
            group = self.follow(Group(denoiser, recipe, prompts[1:], seeds[1:], identity))
        else:
            cache = self.settings.source == "cache"
            group = self.follow(Group(denoiser, recipe, prompts, seeds, keep_cache=cache))
            lender = self.keep_identity(denoiser, group.identity)
        takes = [frame.take for frame in group.frames]
        videos = [lender, *(self.keep(take, *name) for take, name in zip(takes, named[1:], strict=True))]
        self.describe(videos, group)
        return videos

    def known_identity(self, denoiser: Denoiser, prompt: Prompt, seed: int) -> Scouted:
        """An identity that is finished before the others begin: from an earlier run, or made now."""
        if self.joined:
            return self.joined.replay(denoiser, prompt)
        alone = self.follow(Group(denoiser, self.settings.recipe, [prompt], [seed]))
        return alone.identity

    def twins(self, denoiser: Denoiser) -> list[Made]:
        """The frame videos again, from the same prompts and noise, without the method.

        The identity needs no twin: nothing is ever injected into it.
        """
        seeds, named = self.seeds(len(self.prompts)), self.named("vanilla")
        return self.follow_vanilla(denoiser, self.prompts[1:], seeds[1:], named[1:])

    def decode(self, vae: VAE, videos: Sequence[Made]) -> None:
        """Pixels, one video at a time."""
        for video in videos:
            latents = self.checkpoint.shown(video.latents, self.settings.frames).float()
            with torch.no_grad():
                video.frames = to_frames(vae.to_video(latents, tiling=self.settings.vae_tiling)[0])

    def measure(self, videos: Sequence[Made], twins: Sequence[Made]) -> None:
        """What the videos of the group agree in, by the stage's readers, beside their twins."""
        shared = self.settings.recipe.mode != "off"
        groups = {"ours": videos, "vanilla": [videos[0], *twins]} if shared else {"vanilla": videos}
        agree = {
            name: read_group([v.frames for v in group]) for name, group in groups.items() if len(group) > 1
        }
        self.folder.write_json("metrics.json", agree)
        for name, figures in agree.items():
            self.console.say(f"{name}: {in_words(figures)}")

    def named(self, folder: str) -> list[tuple[str, Parts]]:
        """The folder and the parts of every video, the identity's first."""
        shots = [(f"{folder}/{n:02}-{slug(p.action)}", p) for n, p in enumerate(self.parts[1:], start=1)]
        return [("identity", self.parts[0]), *shots]

    def keep(self, take: Take, name: str, parts: Parts) -> Made:
        """A video whose latents are final, and on disk."""
        made = Made(name, parts, take.latents, take.seed, take.prompt)
        self.folder.write_latents(made)
        return made

    def keep_identity(self, denoiser: Denoiser, identity: Scouted) -> Made:
        """The identity, and its trajectory on disk where that was asked for."""
        if self.save_identity:
            recipe = self.joined.recipe if self.joined else self.settings.recipe  # the one it was made by
            whole = Trajectory.of(identity, self.parts[0], recipe, self.world(denoiser))
            whole.save(self.folder / "identity/trajectory.safetensors")
        return self.keep(identity.take, *self.named("shots")[0])

    def describe(self, videos: Sequence[Made], group: Group) -> None:
        """Adds to each video what the method saw in it."""
        grid = group.denoiser.model.grid(videos[0].latents)
        videos[0].mask = group.identity.mask.view(tuple(grid)).cpu()
        for video, frame in zip(videos[1:], group.frames, strict=True):
            video.mask, video.note = frame.mask.view(tuple(grid)).cpu(), frame.note
            video.partner = frame.matches.partner.cpu()

    def follow(self, group: Group) -> Group:
        """Runs a group to its end, showing its steps."""
        for _ in self.console.follow(group.run(), group.total_steps, "group"):
            pass
        return group

    def follow_vanilla(
        self,
        denoiser: Denoiser,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        named: Sequence[tuple[str, Parts]],
    ) -> list[Made]:
        """Runs videos without the method, showing their steps and keeping each when it is done."""
        made: list[Made] = []
        steps = vanilla(denoiser, prompts, seeds)
        for progress, take in self.console.follow(steps, len(prompts) * denoiser.steps, "vanilla"):
            if progress.step == denoiser.steps - 1:
                made.append(self.keep(take, *named[len(made)]))
        return made

    @property
    def parts(self) -> list[Parts]:
        """What every video shows, the identity first."""
        return [*([self.joined.parts] if self.joined else []), *self.story.videos]

    def seeds(self, videos: int) -> list[int]:
        """The noise of the videos."""
        return self.settings.recipe.seeds(self.settings.seed, videos)

    def world(self, denoiser: Denoiser) -> dict[str, Any]:
        """What a later run must share to join this identity."""
        assert isinstance(denoiser.model, torch.nn.Module)
        return {"model": fingerprint(denoiser.model, self.checkpoint.config), **self.settings.world()}

    def config(self) -> dict[str, Any]:
        """Every resolved value and its origin, for `config.json`."""
        words = self.words(self.story.videos[0])
        asked = {"model": self.model.name, "story": vars(self.story), "words": words and vars(words)}
        return {**asked, "identity": self.identity and str(self.identity), **self.settings.to_dict()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a run."""
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    flag("story", nargs="?", type=Path, help="a text file of background#character#action lines")
    flag("--model", "--task", "--ckpt_dir", "--model_path", default="tiny-cogvideox", metavar="NAME|FOLDER")
    flag("--background", metavar="TEXT", help="where all videos play")
    flag("--character", metavar="TEXT", help="who is in all of them")
    marks = "or mark it in the story: a [red fox] in a [wood]"
    flag("--nouns", metavar="A,B,...", help=f"what the masks look for; {marks}")
    flag("--noun-model", type=Path, metavar="FOLDER", help="a local language model that names the nouns")
    flag(
        "--action", action="append", metavar="TEXT", help="once for each video; the first makes the identity"
    )
    add_settings(parser)
    flag(
        "--identity",
        type=Path,
        metavar="FILE",
        help="join the world of an earlier run's trajectory.safetensors",
    )
    flag("--save-identity", action="store_true", help="keep identity/trajectory.safetensors for later runs")
    flag(
        "--with-vanilla", action=switch, help="also make each video without the method; on for shipped models"
    )
    flag("--out", type=Path, metavar="FOLDER", help="where to write: a new folder under runs/")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bachvid.run", description=(__doc__ or "").partition("\n")[0]
    )
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback if something fails")
    return parser


if __name__ == "__main__":
    arguments = build_parser().parse_args()
    sys.exit(guarded(main, arguments))
