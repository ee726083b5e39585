"""Files that are complete or absent; pictures and videos are read back before they count as written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from bachvid.pictures.frames import Frames, enlarge


class Encoding(NamedTuple):
    """How a kind of file is made, in the words of FFmpeg."""

    container: str
    codec: str
    pixels: str
    container_options: dict[str, str]
    codec_options: dict[str, str]
    matrix: tuple[str, str] | None = None  # from RGB to YUV: the colour space and its range


BT709 = {"color_primaries": "bt709", "color_trc": "bt709", "colorspace": "bt709", "color_range": "tv"}
VIDEOS = {
    # What every browser plays. Its index stands before the frames, so that it plays while it loads, and
    # its colours are said to be what they are: left to guess, players disagree.
    ".mp4": Encoding(
        "mp4",
        "libx264",
        "yuv420p",
        {"movflags": "+faststart"},
        {"crf": "16", "preset": "medium", **BT709},
        ("ITU709", "MPEG"),
    ),
    # A moving PNG, for places that show pictures only (a README); exact to the pixel.
    ".png": Encoding("apng", "apng", "rgb24", {"plays": "0"}, {"pred": "mixed"}),
}
IMAGES = {
    ".png": Encoding("image2", "png", "rgb24", {"update": "1"}, {"pred": "mixed"}),
    ".jpg": Encoding(
        "image2", "mjpeg", "yuvj444p", {"update": "1"}, {"qmin": "2", "qmax": "2"}, ("ITU601", "JPEG")
    ),
}


def write_video(
    path: Path | str, frames: Frames, fps: float, min_height: int = 384, smooth: bool = True
) -> None:
    """Writes frames (F, H, W, 3) as an .mp4 (H.264, for any browser) or as a .png that moves (lossless).

    Small frames are enlarged by a whole factor to at least `min_height`, smoothly or as squares (see
    `enlarge`); a last row or column is doubled where H.264 wants an even size. The file appears under its
    name when it is complete and all its frames could be read back, or else OSError is raised.
    """
    if frames.ndim != 4 or not len(frames):
        raise ValueError(f"A video needs frames of the shape (F, H, W, 3), but these have {frames.shape}.")
    if fps <= 0:
        raise ValueError(f"A video cannot play at {fps} frames a second.")
    _write(Path(path), frames, Fraction(fps).limit_denominator(1001), VIDEOS, min_height, smooth)


def write_image(path: Path | str, image: Frames, min_height: int = 0, smooth: bool = True) -> None:
    """Writes one picture (H, W, 3) as .png or .jpg, enlarged and checked as `write_video` does."""
    if image.ndim != 3:
        raise ValueError(f"A picture has the shape (H, W, 3), but this one has {image.shape}.")
    _write(Path(path), image[None], Fraction(1), IMAGES, min_height, smooth)


def count_frames(path: Path | str) -> int:
    """The frames that can be decoded from a file; 0 if it cannot be read at all."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, OSError, IndexError):
        return 0


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, and the folder it lies in if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(data)


def write_json(path: Path, values: Any) -> None:
    """Writes plain values, readable by people; what is not a number becomes null."""
    text = json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def plain(values: Any) -> Any:
    """Values that JSON has words for."""
    if isinstance(values, dict):
        return {key: plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and values != values else values


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` at the end, or is removed on failure."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write(
    path: Path,
    frames: Frames,
    rate: Fraction,
    kinds: Mapping[str, Encoding],
    min_height: int,
    smooth: bool,
) -> None:
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name} cannot be written; the known endings are {', '.join(kinds)}.")
    even = 2 if kind.pixels == "yuv420p" else 1
    with replacing(path) as part:
        _encode(part, (_padded(enlarge(frame, min_height, smooth), even) for frame in frames), rate, kind)
        if (count := count_frames(part)) != len(frames):
            raise OSError(f"{path}: of {len(frames)} frames written only {count} can be read back.")


def _encode(path: Path, pictures: Iterator[Frames], rate: Fraction, kind: Encoding) -> None:
    first = next(pictures)
    with av.open(str(path), "w", format=kind.container, options=kind.container_options) as container:
        stream = container.add_stream(kind.codec, rate=rate, options=kind.codec_options)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = kind.pixels
        stream.height, stream.width = first.shape[:2]
        for picture in chain([first], pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if kind.matrix:
                space, reach = kind.matrix
                frame = frame.reformat(format=kind.pixels, dst_colorspace=space, dst_color_range=reach)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _padded(picture: Frames, multiple: int) -> Frames:
    """The picture with its last row and column repeated until its sides are multiples of `multiple`."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, -height % multiple), (0, -width % multiple), (0, 0)), "edge")
