"""The three analyses of one checkpoint, piece by piece on disk, so that a stopped one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from bachvid.calibrate.observe import Observed, fused_partners, observe
from bachvid.calibrate.profile import Array, MatchScores, by_movement, mask_ious, match_scores
from bachvid.calibrate.select import Layers
from bachvid.calibrate.truth import Judge, Judged, SeenGroup, Truth, Video
from bachvid.calibrate.vital import change, made_without
from bachvid.evaluate.ledger import Ledger
from bachvid.evaluate.studio import Studio, pre_run, together
from bachvid.method.denoiser import Prompt
from bachvid.method.recipe import Recipe
from bachvid.method.spans import Parts
from bachvid.models.weights import save
from bachvid.pictures.files import write_video
from bachvid.pictures.frames import Frames


@dataclass(frozen=True, eq=False)
class ObservedGroup:
    """What was seen of one group's vanilla videos, and what is true of them, in tokens."""

    observed: Observed
    masks: Tensor  # V N bool
    partners: Tensor  # V-1 N T int64: see `Eyes.partners`


@dataclass(frozen=True, eq=False)
class Analysis:
    """Observes groups of videos and judges them; every piece is written to `folder` as soon as it is made."""

    studio: Studio
    truth: Truth
    judge: Judge | None  # None: nobody says how good videos look
    stories: Sequence[Sequence[Parts]]  # the videos of every group, the identity first
    seed: int
    folder: Path
    ledger: Ledger  # of the scores without a layer
    fps: int

    @property
    def device(self) -> torch.device:
        return self.studio.negative.device

    def seeds(self, group: int) -> list[int]:
        """The noise of a group's videos."""
        earlier = sum(map(len, self.stories[:group]))
        return self.studio.recipe.seeds(self.seed + earlier, len(self.stories[group]))

    @cached_property
    def prompts(self) -> list[list[Prompt]]:
        """Those of every group, encoded; then the text encoder makes room."""
        prompts = [self.studio.prompts(story) for story in self.stories]
        self.studio.encoder.unload()
        return prompts

    def observe(self) -> Iterator[int]:
        """Sees every group that was not seen yet and writes its videos to look at, yielding its number."""
        for number in range(len(self.stories)):
            if not (path := self._path("groups", number)).exists():
                given = self.studio.recipe, self.prompts[number], self.seeds(number)
                save(vars(observe(self.studio.denoiser(), *given)), path)
            for n in range(len(self.stories[number])):
                if not (file := self.folder / "videos" / f"{number:03}-{n}.mp4").exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_video(file, self.video(number, n), self.fps)
            yield number

    def learn(self) -> Iterator[int]:
        """Asks what is true of every group's videos, yielding its number."""
        grid = self.studio.grid()
        for number, story in enumerate(self.stories):
            if not (path := self._path("truth", number)).exists():
                observed = Observed(**load_file(self._path("groups", number)))
                ends = observed.trajectory[:, -1:].to(self.device)
                videos = (
                    Video(f"{number:03}-{n}", self.studio.develop(latents), parts)
                    for n, (latents, parts) in enumerate(zip(ends, story, strict=True))
                )
                save(self.truth.of(SeenGroup(observed, videos), grid)._asdict(), path)
            yield number

    def groups(self) -> Iterator[ObservedGroup]:
        """All groups, one after another from disk."""
        for number in range(len(self.stories)):
            seen, true = (load_file(self._path(kind, number)) for kind in ("groups", "truth"))
            yield ObservedGroup(Observed(**seen), **true)

    def joined_ious(self, sets: Collection[Layers]) -> dict[Layers, Array]:
        """For each set of layers the IoU (V, S, L) of the masks it makes with every layer, of all videos."""
        found: dict[Layers, list[Array]] = {layers: [] for layers in sets}
        for group in self.groups():
            for layers, ious in found.items():
                seen = group.observed.scores, group.masks, self.studio.recipe.mask_split
                ious.append(mask_ious(*seen, joined=layers))
        return {layers: np.concatenate(ious) for layers, ious in found.items()}

    def fuse(self, layers: Layers) -> Iterator[MatchScores]:
        """Scores (V-1, S) of the partners that these match layers find together, group by group."""
        recipe = replace(self.studio.recipe, match_layers=layers, mask_layers=layers[:1])
        for number, group in enumerate(self.groups()):
            if not (path := self._fused(number, layers)).exists():
                given = self.studio.denoiser(), recipe, self.prompts[number], group.observed.trajectory
                save({"partner": fused_partners(*given)}, path)
            yield match_scores(self.fused_partners(number, layers), group.partners, self.studio.grid())

    def fused_partners(self, number: int, layers: Layers) -> Tensor:
        """The partners (V-1, S, N) that these match layers find together in a group that was fused."""
        return load_file(self._fused(number, layers))["partner"]

    def by_movement(self, layers: Layers, step: int) -> dict[str, list[Any]]:
        """How good the partners of these match layers are at a step, by how far the character moved."""
        found = [self.fused_partners(number, layers)[:, step] for number in range(len(self.stories))]
        true = [load_file(self._path("truth", number))["partners"] for number in range(len(self.stories))]
        return by_movement(torch.cat(found), torch.cat(true), self.studio.grid())

    def leave_out(self, videos: int) -> Iterator[tuple[int, int]]:
        """Scores the first `videos` identity videos without each layer, yielding group and layer."""
        assert self.judge is not None
        judge, done = self.judge, self.ledger.done()
        for number in range(videos):
            full = None
            for layer in range(len(self.studio.model.blocks) + 1):  # 0: nothing is left out
                if f"{number}/{layer}" not in done:
                    full = full or judge.judge(self.video(number, 0))
                    self.ledger.add(f"{number}/{layer}", self._scored(judge, number, layer, full))
                yield number, layer

    def videos_without(self, number: int) -> dict[int, Frames]:
        """The identity video of a group without each layer, by layer."""
        layers = range(1, len(self.studio.model.blocks) + 1)
        paths = {layer: self._path(f"without-{layer}", number) for layer in layers}
        latents = {layer: load_file(path)["latents"] for layer, path in paths.items()}
        return {layer: self.studio.develop(each.to(self.device)) for layer, each in latents.items()}

    def without(self, score: str, videos: int) -> Array:
        """A score of every video, whole and without each layer, (videos, L + 1)."""
        done, layers = self.ledger.done(), range(len(self.studio.model.blocks) + 1)
        return np.array([[done[f"{n}/{layer}"][score] for layer in layers] for n in range(videos)])

    def change(self, recipe: Recipe, group: int) -> float:
        """How far the recipe moves the frame videos of a group from their vanilla twins; measured once."""
        name = f"{group}/lent by {json.dumps(recipe.to_dict())}"
        if name not in (done := self.ledger.done()):
            trajectory = self._trajectory(group).to(self.device)
            denoiser = self.studio.denoiser()
            rows = zip(self.prompts[group], self.seeds(group), trajectory, strict=True)
            seen = [
                pre_run(denoiser, recipe, denoiser.start(prompt, seed), row.split(1))
                for prompt, seed, row in rows
            ]
            made = together(denoiser, recipe, seen[0], seen[1:])
            moved = change([frame.take.latents for frame in made], [row[-1:] for row in trajectory[1:]])
            done[name] = {"change": sum(moved) / len(moved)}
            self.ledger.add(name, done[name])
        return done[name]["change"]

    def video(self, group: int, number: int) -> Frames:
        """The pixels of a vanilla video."""
        return self.studio.develop(self._trajectory(group)[number, -1:].to(self.device))

    def _trajectory(self, group: int) -> Tensor:
        """The latents of a group's videos at every step, without the maps beside them."""
        with safe_open(self._path("groups", group), framework="pt") as file:
            return file.get_tensor("trajectory")

    def _scored(self, judge: Judge, number: int, layer: int, full: Judged) -> dict[str, float]:
        started, judged = time.perf_counter(), full
        if layer:
            latents = made_without(self.studio, self.prompts[number][0], self.seeds(number)[0], layer)
            save({"latents": latents}, self._path(f"without-{layer}", number))
            judged = judge.judge(self.studio.develop(latents))
        likeness = judge.likeness(full, judged)
        return {"quality": judged.quality, "likeness": likeness, "seconds": time.perf_counter() - started}

    def _fused(self, number: int, layers: Layers) -> Path:
        return self._path("fused-" + "-".join(map(str, layers)), number)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:03}.safetensors"
