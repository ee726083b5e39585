"""One identity video and its frame videos: the algorithm of Section 3.5, from the pre-run to the last step.

group = Group(denoiser, recipe, prompts, seeds)
for progress in group.run():
    print(progress)
latents = [video.latents for video in group.takes]         # the identity first
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.frame import FrameVideo
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, scout
from bachvid.method.source import Alongside, Cache, check_cached
from bachvid.method.together import Pass, forward
from bachvid.sampling.loop import denoise


class Progress(NamedTuple):
    """One step taken: in which phase, by which video (None: by all of them), and its index."""

    phase: str  # "pre-run", "identity" or "main run"
    video: int | None
    step: int


class Group:
    """Makes an identity video and frame videos that share its character and its place.

    `prompts` and `seeds` name the identity first. With `identity`, the videos join a world that an earlier
    run made (replay): its trajectory is known to the end, and all prompts are frame videos. With
    `keep_cache`, the identity is finished first and its keys and values wait in host memory, as in the
    paper; otherwise all videos walk in lockstep and nothing is kept. Both give the same videos; ValueError
    for a cache with a recipe of both branches.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        recipe: Recipe,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        identity: Scouted | None = None,
        keep_cache: bool = False,
    ) -> None:
        if keep_cache:
            check_cached(recipe)
        self.denoiser = denoiser
        self.recipe = recipe.at(denoiser.sampler.schedule.timesteps)
        self.starts = list(zip(prompts, seeds, strict=True))
        self.joins = identity is not None
        self.keep_cache = keep_cache
        self.frames: list[FrameVideo] = []
        self._identity = identity

    @property
    def identity(self) -> Scouted:
        """The identity as far as it has come, once its pre-run is over."""
        assert self._identity is not None, "the identity's pre-run comes first"
        return self._identity

    @property
    def takes(self) -> list[Take]:
        """The videos made here: the identity first, unless it was given."""
        frames = [frame.take for frame in self.frames]
        return frames if self.joins else [self.identity.take, *frames]

    @property
    def total_steps(self) -> int:
        """How many steps `run` takes if every mask can be believed at once."""
        steps, tau = self.denoiser.steps, max(self.recipe.tau_mask, self.recipe.tau_match)
        identity_first = steps - tau if self.keep_cache and not self.joins else 0
        return len(self.starts) * tau + identity_first + steps

    def run(self) -> Iterator[Progress]:
        """Makes the videos, yielding after every step; when it ends, `takes` hold the final latents."""
        for n, (prompt, seed) in enumerate(self.starts):
            self._take_in((yield from self._pre_run(n, prompt, seed)))
        if not self.recipe.refresh:
            self.identity.features = None  # gigabytes of a large model, and nobody matches again
        yield from MainRun(self.denoiser, self.recipe, self.identity, self.frames, self.keep_cache).run()

    def _pre_run(self, n: int, prompt: Prompt, seed: int) -> Generator[Progress, None, Scouted]:
        steps = scout(self.denoiser, self.recipe, prompt, seed)
        while True:
            try:
                yield Progress("pre-run", n, next(steps))
            except StopIteration as end:
                return end.value

    def _take_in(self, seen: Scouted) -> None:
        """The first video is the identity; of the others, matches outlive the features, which are large."""
        if self._identity is None:
            self._identity = seen
        else:
            self.frames.append(FrameVideo(self.denoiser, self.recipe, seen, self.identity))


class MainRun:
    """All steps of frame videos whose pre-runs are over, and the steps that their identity has not taken yet.

    With `keep_cache` the identity is finished first, and lends from the cache; ValueError as of `Group`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        recipe: Recipe,
        identity: Scouted,
        frames: Sequence[FrameVideo],
        keep_cache: bool = False,
    ) -> None:
        self.denoiser = denoiser
        self.recipe = recipe
        self.identity = identity
        self.frames = frames
        self.source: Alongside | Cache = (Cache if keep_cache else Alongside)(identity, recipe)

    def run(self) -> Iterator[Progress]:
        """Takes the steps, yielding after every one; then all latents are final."""
        if isinstance(self.source, Cache):
            for step in self.source.fill(self.denoiser):
                yield Progress("identity", 0, step)
        identity, sampler = self.identity, self.denoiser.sampler
        takes, known = [frame.take for frame in self.frames], len(identity.trajectory) - 1
        for step in denoise(self._predict, takes, sampler, range(known)):
            yield Progress("main run", None, step)
        for step in denoise(
            self._predict, [identity.take, *takes], sampler, range(known, self.denoiser.steps)
        ):
            identity.trajectory.append(identity.take.latents)
            yield Progress("main run", None, step)

    def _predict(self, takes: Sequence[Take], step: int) -> list[Tensor]:
        """Guided predictions of the takes; frame videos borrow."""
        if not self.frames or not self.recipe.injects_at(step):
            return self.denoiser.vanilla(takes, step)
        conditional, unconditional = self._branch(step, None), None
        if self.recipe.branches == "both" and self.denoiser.guided:
            unconditional = self._branch(step, self.denoiser.negative)
        for frame in self.frames:
            frame.learn(step)
        return self.denoiser.guide(takes, step, conditional, unconditional)

    def _branch(self, step: int, negative: Tensor | None) -> list[Tensor]:
        """Predictions of one branch of guidance, block by block, the identity going first through each."""
        passes, lend = self.source.at(step, negative)
        for frame in self.frames:
            latents, attend_at = frame.take.latents, frame.borrow(step, lend)
            if negative is None:
                passes.append(Pass(latents, frame.take.prompt.text, frame.watch(step, attend_at)))
            else:
                passes.append(Pass(latents, negative, attend_at))
        return forward(self.denoiser.model, self.denoiser.timestep(step), passes)


def vanilla(
    denoiser: Denoiser, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> Iterator[tuple[Progress, Take]]:
    """Each video on its own, without the method: every step taken, and the take that took it."""
    for n, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        take = denoiser.start(prompt, seed)
        for step in denoise(denoiser.vanilla, [take], denoiser.sampler):
            yield Progress("vanilla", n, step), take
