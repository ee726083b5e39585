"""What a checkpoint of any family is: parts on disk that fit together, and the videos they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from bachvid.models.attention import Site
from bachvid.models.grid import Grid
from bachvid.models.text import TextEncoder, tokenizer_file
from bachvid.models.weights import WeightsError, read_config, read_json, weight_files

Config = TypeVar("Config")


class Model(Protocol):
    """A video diffusion transformer, in named stages; `sites` lists where a method may stand."""

    sites: tuple[Site, ...]
    blocks: nn.ModuleList

    def begin(self, latents: Tensor, t: Tensor, text: Tensor) -> Any: ...
    def finish(self, stream: Any) -> Tensor: ...
    def grid(self, latents: Tensor) -> Grid: ...


class VAE(Protocol):
    """A video autoencoder, in the denoiser's own latents (1, ...) and videos (1, 3, F, H, W) in [-1, 1]."""

    def to_latents(self, video: Tensor, *, tiling: bool = False, slicing: bool = False) -> Tensor: ...
    def to_video(self, latents: Tensor, *, tiling: bool = False, slicing: bool = False) -> Tensor: ...


class Format(NamedTuple):
    """The videos that a checkpoint makes: its own, and how others may differ from them."""

    size: tuple[int, int]  # width, height in pixels
    size_unit: int  # both are multiples of it
    side: int | None  # neither is more, where positions end
    frames: int
    frame_unit: int  # frames are a multiple of it, plus one
    longest: int  # frames
    fps: int


@dataclass(frozen=True)
class Checkpoint(ABC):
    """A model on disk; every number is known, no weight is read before a part is asked for."""

    layout: str  # "diffusers" or "original"
    config: Any  # of the denoiser
    vae_config: Any
    scheduler: Mapping[str, Any]  # what diffusers has in scheduler_config.json
    transformer_path: Path  # a file, or a folder of files
    vae_path: Path
    text_path: Path  # holds tokenizer/ and text_encoder/, or the files of both

    family: ClassVar[str]  # "cogvideox" or "wan"
    published: ClassVar[Mapping[str, Any]]  # the configs of the family's releases
    # What its pipeline holds in float32, whatever the dtype.
    wide: ClassVar[Literal["predictions", "latents"]]
    index: ClassVar[Mapping[str, Any]]  # what diffusers builds a pipeline from, but for the scheduler
    configs: ClassVar[tuple[Any, Any]]  # the classes of `config` and `vae_config`
    text: ClassVar[type[TextEncoder]]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The one in a folder of diffusers."""
        config, vae = (
            read_part(folder / part, cls.index[part][1], kind.from_dict)
            for part, kind in zip(("transformer", "vae"), cls.configs, strict=True)
        )
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        for part in ("transformer", "vae", "text_encoder"):
            weight_files(folder / part)
        tokenizer_file(folder / "tokenizer")
        text = read_config(folder / "text_encoder" / "config.json", "model_type", cls.text.kind)
        found = cls("diffusers", config, vae, scheduler, folder / "transformer", folder / "vae", folder)
        return found.checked(folder / "text_encoder", text)

    @abstractmethod
    def checked(self, text: Path, settings: Mapping[str, Any]) -> Self:
        """This checkpoint, if its parts, the text encoder's `config.json` among them, are of one model.

        WeightsError if not.
        """

    @classmethod
    @abstractmethod
    def find(cls, folder: Path) -> Self | None:
        """The one that the files of an original release hold; None if there is no such transformer."""

    @property
    def name(self) -> str:
        """The published model with these numbers, such as "cogvideox-5b"; otherwise its family."""
        return next((name for name, known in self.published.items() if known == self.config), self.family)

    @property
    @abstractmethod
    def format(self) -> Format:
        """The videos it makes."""

    @property
    @abstractmethod
    def text_length(self) -> int:
        """The tokens of every encoded prompt, padding included."""

    @property
    def rotary(self) -> bool:
        """Whether keys are turned by where their tokens stand; if not, positions are added to the tokens."""
        return True

    @property
    @abstractmethod
    def trained_dtype(self) -> torch.dtype:
        """What its weights were trained in, best where there is no reason for another."""

    @abstractmethod
    def check_tiling(self) -> None:
        """Raise ValueError if its autoencoder cannot decode in tiles."""

    @abstractmethod
    def latent_shape(self, size: tuple[int, int], frames: int) -> tuple[int, ...]:
        """The latents (1, ...) of a video of `size` (width, height) pixels and `frames` frames."""

    @abstractmethod
    def shown(self, latents: Tensor, frames: int) -> Tensor:
        """The latents that become `frames` frames, without what only fills a patch."""

    @abstractmethod
    def outline(self) -> Model:
        """The denoiser on the meta device: names, shapes and sites, but no weights."""

    @abstractmethod
    def transformer(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Model:
        """The denoiser, loaded."""

    @abstractmethod
    def vae(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> VAE:
        """The autoencoder, loaded."""

    @abstractmethod
    def text_encoder(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> TextEncoder:
        """The text encoder, which is loaded when it is first needed."""


def read_part(part: Path, class_name: str, read: Callable[[Mapping[str, Any]], Config]) -> Config:
    """What `read` makes of a part's `config.json`, which must describe a `class_name` of diffusers."""
    file = part / "config.json"
    values = read_config(file, "_class_name", class_name)
    try:
        return read(values)
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from error


def check_fit(*facts: tuple[str, Path, Any, Any]) -> None:
    """Raise WeightsError if parts are not of one model: what, of which part, it has, and what is needed."""
    for what, path, has, needs in facts:
        if has != needs:
            raise WeightsError(
                f"{path} has {has} {what}, the transformer beside it needs {needs}; take both from one model"
            )
