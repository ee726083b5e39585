"""The trajectory file: an identity video that later runs can join (replay)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted
from bachvid.method.spans import Parts
from bachvid.models.weights import save

FORMAT = "bachvid-identity-1"


@dataclass(frozen=True)
class Trajectory:
    """What the file holds: the identity's latents before every step and after the last, and their origin.

    For CogVideoX-5B it takes 114 MB where the paper measured 172 GB for its cache of keys and values.
    """

    latents: Tensor  # steps + 1, and the shape of one video's latents
    mask: Tensor  # N bool
    believed: bool
    parts: Parts
    seed: int
    recipe: Recipe
    world: dict[str, Any]  # model, scheduler, guidance, negative prompt: what a run that joins must share

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        known = {
            "format": FORMAT,
            "believed": self.believed,
            "parts": vars(self.parts),
            "seed": self.seed,
            "recipe": self.recipe.to_dict(),
            "world": self.world,
        }
        save({"latents": self.latents, "mask": self.mask}, path, bachvid=json.dumps(known))

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """The trajectory in a file; ValueError says what is wrong with it."""
        if not path.is_file():
            raise ValueError(f"There is no file {path}. Name a trajectory that --save-identity wrote.")
        try:
            with safe_open(path, framework="pt") as file:
                known = _told((file.metadata() or {}).get("bachvid", ""))
                if known.get("format") != FORMAT:
                    raise ValueError(f"{path} is no identity file. Name one that --save-identity wrote.")
                latents, mask = (file.get_tensor(name) for name in ("latents", "mask"))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"The identity {path} cannot be read ({error}). Make it again: --save-identity."
            ) from error
        try:
            return cls._of_file(latents, mask, known)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The identity {path} is damaged ({error!r}). Make it again: --save-identity."
            ) from error

    @classmethod
    def _of_file(cls, latents: Tensor, mask: Tensor, known: dict[str, Any]) -> Trajectory:
        """A trajectory of a file's tensors and of what it says of them; some exception if it is damaged."""
        parts, world, steps = Parts(**known["parts"]), dict(known["world"]), known["world"].get("steps")
        if not latents.isfinite().all() or mask.dtype != torch.bool or mask.ndim != 1:
            raise ValueError("latents that are no numbers, or no mask")
        if steps is not None and len(latents) != steps + 1:
            raise ValueError(f"{len(latents)} latents, where {steps} steps leave {steps + 1}")
        if not isinstance(known["believed"], bool) or not isinstance(known["seed"], int) or known["seed"] < 0:
            raise ValueError("neither seed nor mask are told")
        if not all(isinstance(text, str) for text in vars(parts).values()):
            raise ValueError("a prompt that is no text")
        recipe = Recipe.from_dict(known["recipe"])
        return cls(latents, mask, known["believed"], parts, known["seed"], recipe, world)

    @classmethod
    def of(cls, identity: Scouted, parts: Parts, recipe: Recipe, world: dict[str, Any]) -> Trajectory:
        """The trajectory of an identity whose run is over."""
        return cls(
            latents=torch.stack([x.cpu() for x in identity.trajectory]),
            mask=identity.mask,
            believed=identity.believed,
            parts=parts,
            seed=identity.take.seed,
            recipe=recipe,
            world=world,
        )

    def check(self, world: dict[str, Any]) -> None:
        """Raise ValueError if a run in this world cannot join; the sentence names the first difference."""
        for name in {**world, **self.world}:  # the model first
            if self.world.get(name) != world.get(name):
                theirs, ours = _difference(self.world.get(name), world.get(name))
                raise ValueError(
                    f"The identity was made with {name} {theirs}, and this run has {ours}. "
                    f"Use the same {name}, or make the identity again."
                )

    def replay(self, denoiser: Denoiser, prompt: Prompt) -> Scouted:
        """The identity as its own run left it, without features: who joins reads them from its latents."""
        tokens = denoiser.model.grid(torch.empty(denoiser.shape, device="meta")).tokens
        if self.latents.shape[1:] != denoiser.shape or len(self.mask) != tokens:
            raise ValueError("The identity is of another size than it says. Make it again: --save-identity.")
        trajectory = list(self.latents.to(denoiser.negative.device))
        take = Take(trajectory[-1], torch.Generator(), prompt=prompt, seed=self.seed)
        mask = self.mask.to(denoiser.negative.device)
        return Scouted(take, denoiser.steps, trajectory, mask, self.believed, features=None)


def _told(about: str) -> dict[str, Any]:
    """The values in a file's header; none if it holds something else."""
    try:
        known = json.loads(about)
    except (ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _difference(theirs: Any, ours: Any) -> tuple[str, str]:
    """Two unequal values in words, of two tables the first entry that differs."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return str(theirs), str(ours)
    entry = next(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    return f"{entry} {theirs.get(entry)}", f"{entry} {ours.get(entry)}"


def fingerprint(model: nn.Module, config: object = None) -> str:
    """Sixteen hexadecimal digits that tell models apart.

    A hash of the first 64 numbers of every parameter and of the configuration: a 2B and a 5B may share all
    their weights and differ in how they encode positions.
    """
    digest = hashlib.sha256(repr(config).encode())
    for name, parameter in model.named_parameters():
        some = parameter.detach().flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + some)
    return digest.hexdigest()[:16]
