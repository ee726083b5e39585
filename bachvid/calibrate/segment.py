"""Where the character is in a finished video: found by its words and followed, or drawn by the user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import NamedTuple, Protocol

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bachvid.calibrate.prepare import for_grounding_dino, for_sam2
from bachvid.calibrate.pretrained import DETECTOR, SEGMENTER, described, load, load_tokenizer
from bachvid.errors import UsageError
from bachvid.method.words import FUNCTION_WORDS
from bachvid.pictures.frames import Frames

LOOKS = 5  # frames of a video in which the character is looked for
BOX_SCORE = 0.30  # a box counts above it,
WORD_SCORE = 0.25  # and only if one of the words themselves is above this
PICTURES = (".png", ".jpg", ".jpeg")
# What may follow a noun and its adjectives, and ends them; "a man of forty" goes on, though.
AFTER_A_NOUN = (FUNCTION_WORDS - {"of"}) | {
    *("wearing", "holding", "carrying", "dressed", "clad", "called", "named"),
    *("standing", "sitting", "walking", "looking", "riding"),
}
NAMED = re.compile(r"^\s*(?!An?\b|The\b)[A-Z][\w'’-]*(\s+[A-Z][\w'’-]*)*,\s+(?=(an?|the)\b)")


class Masker(Protocol):
    """Says where the character is; `about` names its models, for the record."""

    about: str

    def __call__(self, name: str, frames: Frames, character: str) -> Tensor:
        """The character's mask (F, H, W) bool in the video of this name; empty if there is none."""


class GroundedSam:
    """Masks of what Grounding DINO finds by the character's words and SAM 2 follows through the video."""

    def __init__(
        self,
        detector: str = DETECTOR.usual,
        segmenter: str = SEGMENTER.usual,
        device: torch.device | str = "cpu",
    ) -> None:
        self.about = f"{described(DETECTOR, detector)} and {described(SEGMENTER, segmenter)}"
        self._detector = Detector(detector, device)
        self._tracker = Tracker(segmenter, device)

    def __call__(self, name: str, frames: Frames, character: str) -> Tensor:
        found = self._detector.find(frames, head_phrase(character))
        return self._tracker.follow(frames, found) if found else torch.zeros(frames.shape[:3]).bool()


class Box(NamedTuple):
    """A thing found in one frame."""

    score: float
    frame: int
    corners: Tensor  # left, top, right, bottom, in pixels


class Detector:
    """Grounding DINO: finds in pictures what a phrase names."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.model = load(DETECTOR, name, device)
        self.tokenizer = load_tokenizer(DETECTOR, name)
        self.device = device

    @torch.no_grad()
    def find(self, frames: Frames, phrase: str) -> Box | None:
        """The best of the boxes in a few frames, spread evenly; None if no frame has one that counts."""
        text = self.tokenizer(phrase, return_tensors="pt").to(self.device)
        height, width = frames.shape[1:3]
        found = []
        for t in evenly(len(frames), LOOKS):
            picture = for_grounding_dino(frames[t : t + 1]).to(self.device)
            seen = self.model(pixel_values=picture, **text)
            best = best_query(seen.logits[0, :, : text.input_ids.shape[1]].cpu())
            if best is not None:
                score, query = best
                x, y, w, h = seen.pred_boxes[0, query].cpu()  # centre and size, as shares of the picture
                corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clamp(0, 1)
                found.append(Box(score, t, corners * torch.tensor([width, height, width, height])))
        return max(found, key=lambda box: box.score, default=None)


class Tracker:
    """SAM 2: follows a thing through a video. Its processors need torchvision; what they do is here."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.model = load(SEGMENTER, name, device)
        self.device = device

    def follow(self, frames: Frames, box: Box) -> Tensor:
        """The mask (F, H, W) bool of the thing in a box, from the box's frame to both ends of the video."""
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        (count, height, width), side = frames.shape[:3], self.model.config.image_size
        session = Sam2VideoInferenceSession(
            video=for_sam2(frames, side),
            video_height=height,
            video_width=width,
            inference_device=self.device,
            inference_state_device=self.device,
            dtype=torch.float32,
        )
        corners = box.corners.view(1, 1, 2, 2) * torch.tensor([side / width, side / height])
        labels = torch.tensor([[[2, 3]]], dtype=torch.int32)  # these two points are the corners of a box
        thing = session.obj_id_to_idx(0)
        session.add_point_inputs(thing, box.frame, {"point_coords": corners, "point_labels": labels})
        session.obj_with_new_inputs = [0]
        self.model(session, frame_idx=box.frame)
        mask = torch.zeros(count, height, width).bool()
        for backwards in (False, True):
            steps = self.model.propagate_in_video_iterator(
                session, start_frame_idx=box.frame, reverse=backwards
            )
            for seen in steps:
                logits = F.interpolate(seen.pred_masks.float(), (height, width), mode="bilinear")  # 1 1 H W
                mask[seen.frame_idx] = logits[0, 0].cpu() > 0
        return mask


class MaskFolder:
    """The user's own masks: FOLDER/NAME.mp4, or pictures in FOLDER/NAME/; white is the character."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder} with masks. Name one that holds NAME.mp4 files.")
        self.folder = folder
        self.about = f"masks in {folder}"

    def __call__(self, name: str, frames: Frames, character: str) -> Tensor:
        place, pictures = self._read(name)
        sizes = {picture.shape[:2] for picture in pictures}
        if len(pictures) != len(frames) or sizes != {frames.shape[1:3]}:
            ours = f"{len(frames)} of {frames.shape[2]}x{frames.shape[1]}"
            theirs = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
            raise UsageError(
                f"{place} has {len(pictures)} masks of {theirs}, and the video has {ours} pixels. "
                "Draw one mask for every frame, at the video's own size."
            )
        return torch.from_numpy(np.stack(pictures).mean(axis=-1) > 127.5)

    def _read(self, name: str) -> tuple[Path, list[NDArray[np.uint8]]]:
        if not re.fullmatch(r"\w[\w.-]*", name):  # it is about to become a path
            raise UsageError(
                f"There are no masks for a video called {name!r}: files can be found only "
                "for names of letters, digits, dots and hyphens."
            )
        video, folder = self.folder / f"{name}.mp4", self.folder / name
        files = [video] if video.is_file() else sorted(pictures_in(folder), key=in_order)
        if not files:
            raise UsageError(
                f"{self.folder} has no masks for video {name}: neither {name}.mp4 nor a folder {name} "
                f"with pictures ({', '.join(PICTURES)}). Draw them, white where the character is."
            )
        return video if video.is_file() else folder, [picture for file in files for picture in decoded(file)]


def head_phrase(character: str) -> str:
    """The noun that a character's description begins with, and its adjectives, as Grounding DINO wants it.

    "An old fisherman with a hat," is "old fisherman.", and so is what follows a name, "Ross, an astronaut";
    without any noun, it is "person.".
    """
    words = re.findall(r"[\w'’-]+|[^\w\s]", NAMED.sub("", character).lower())
    begun = dropwhile(lambda word: word in FUNCTION_WORDS or not word[0].isalnum(), words)
    kept = takewhile(lambda word: word not in AFTER_A_NOUN and word[0].isalnum(), begun)
    return f"{' '.join(kept) or 'person'}."


def evenly(frames: int, count: int) -> list[int]:
    """At most `count` frames of a video, from the first to the last, at even distances."""
    return sorted(set(np.linspace(0, frames - 1, count).round().astype(int).tolist()))


def best_query(logits: Tensor) -> tuple[float, int] | None:
    """Score and number of the box that fits its text best, for logits (boxes, tokens); None if none counts.

    A box scores as its best token does. The first token and the last two (the end mark, and the full stop
    before it) are no words: a box that fits only those has found nothing.
    """
    chances = logits.sigmoid()
    scores = chances.amax(dim=1)
    counts = (scores > BOX_SCORE) & (chances[:, 1:-2].amax(dim=1) > WORD_SCORE)
    score, query = torch.where(counts, scores, 0).max(dim=0)
    return (score.item(), int(query)) if counts.any() else None


def pictures_in(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*") if file.suffix.lower() in PICTURES]


def in_order(file: Path) -> list[tuple[int, str]]:
    """What sorts files as people count: 2.png before 10.png."""
    return [(int(number or 0), text) for text, number in re.findall(r"(\D*)(\d*)", file.stem)]


def decoded(file: Path) -> Iterator[NDArray[np.uint8]]:
    """The pictures (H, W, 3) in a video or picture file; UsageError if it cannot be read."""
    try:
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24").astype(np.uint8)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UsageError(f"{file} cannot be read as a video or picture ({error}). Save it again.") from error
