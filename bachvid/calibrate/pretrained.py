"""Public vision models that the user has, in a folder or in the cache. Nothing is ever fetched."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bachvid.models.weights import WeightsError

UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Kind:
    """A kind of model: what to call it, what reads it, and the one that is usual."""

    what: str
    architecture: str  # its class in transformers
    types: tuple[str, ...]  # what its config.json may call it
    usual: str  # its id


DETECTOR = Kind(
    "Grounding DINO",
    "GroundingDinoForObjectDetection",
    ("grounding-dino",),
    "IDEA-Research/grounding-dino-base",
)
SEGMENTER = Kind("SAM 2", "Sam2VideoModel", ("sam2_video",), "facebook/sam2.1-hiera-base-plus")
DINOV2 = Kind("DINOv2", "Dinov2Model", ("dinov2",), "facebook/dinov2-base")
LOFTR = Kind("EfficientLoFTR", "EfficientLoFTRModel", ("efficientloftr",), "zju-community/efficientloftr")
CLIP = Kind(
    "CLIP",
    "CLIPVisionModelWithProjection",
    ("clip", "clip_vision_model"),
    "openai/clip-vit-large-patch14",
)

LICENCES = {
    **dict.fromkeys(
        (
            "IDEA-Research/grounding-dino-tiny",
            "IDEA-Research/grounding-dino-base",
            "facebook/sam2.1-hiera-tiny",
            "facebook/sam2.1-hiera-small",
            "facebook/sam2.1-hiera-base-plus",
            "facebook/sam2.1-hiera-large",
            "facebook/dinov2-small",
            "facebook/dinov2-base",
            "facebook/dinov2-large",
            "facebook/dinov2-giant",
            "zju-community/efficientloftr",
        ),
        "Apache-2.0",
    ),
    "openai/clip-vit-large-patch14": "MIT for the code; the weights came without a licence of their own",
    "sa_0_4_vit_l_14_linear.pth": "MIT (LAION aesthetic predictor v1)",
    "sac+logos+ava1-l14-linearMSE.pth": "copies say Apache-2.0; the original has no licence file",
}


def licence(name: str) -> str:
    """What is known of the licence of a model, named by id, or of a file, named by any path: one line."""
    known = LICENCES.get(name) or LICENCES.get(Path(name).name)
    return f"{name}: {known or 'not one of those bachvid knows; it has the licence that it came with'}"


def load(kind: Kind, name: str, device: torch.device | str = "cpu") -> Any:
    """The model of this kind in a local folder, or of this id in the cache, in float32 and eval mode.

    WeightsError in one sentence if it is absent, damaged, or of another kind: transformers itself would
    fill in random weights, and a measurement by those looks like any other.
    """
    import transformers  # takes seconds, which few need

    config: Any = _read(transformers.AutoConfig.from_pretrained, kind, name)
    if config.model_type not in kind.types:
        raise WeightsError(
            f"{name} is a model of the kind {config.model_type}, and {kind.what} is wanted here. "
            f"Name a folder or an id of that kind, such as {kind.usual}."
        )
    read = getattr(transformers, kind.architecture).from_pretrained
    model, found = _read(read, kind, name, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise WeightsError(
            f"{name} lacks {len(missing)} of the tensors of {kind.what}, such as {missing[0]}. "
            f"Fetch it again, whole: hf download {_id(kind, name)}"
        )
    return model.eval().requires_grad_(False).to(device)


def load_tokenizer(kind: Kind, name: str) -> Any:
    """The tokenizer beside the model of that name; WeightsError in one sentence if there is none."""
    from transformers import AutoTokenizer

    return _read(AutoTokenizer.from_pretrained, kind, name)


def find(kind: Kind, name: str) -> Path:
    """The folder of a model: the one of that name, or the one in the cache that holds the id's main revision.

    Found by looking at the disk alone; given an id, libraries may ask the hub on the way, even offline.
    WeightsError if there is neither.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        config = None
    if isinstance(config, str):
        return Path(config).parent
    raise WeightsError(
        f"There is no {kind.what} {name!r}: it is no folder, and the cache {constants.HF_HUB_CACHE} does not "
        f"hold it. Name the folder of one, or fetch it first: hf download {_id(kind, name)}"
    )


def described(kind: Kind, name: str) -> str:
    """A model for the record: its kind, its name and, from the cache, its revision."""
    folder = find(kind, name)
    revision = f" at {folder.name[:8]}" if folder.parent.name == "snapshots" else ""
    return f"{kind.what} ({name}{revision})"


def _read(read: Callable[..., Any], kind: Kind, name: str, **options: Any) -> Any:
    folder = find(kind, name)
    try:
        with _quietly():
            return read(folder, local_files_only=True, **options)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(" .:")
        raise WeightsError(
            f"{folder} holds no {kind.what} that can be read ({reason}). "
            f"Name the folder of one, or fetch one, whole: hf download {_id(kind, name)}"
        ) from error


def _id(kind: Kind, name: str) -> str:
    """The id to fetch: the name itself if it is known as one, for a folder's may look the same."""
    return name if name in LICENCES else kind.usual


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the tables and bars that transformers prints of tensors that nobody asked for."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
