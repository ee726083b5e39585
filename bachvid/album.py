"""The pictures of a run: every video, what the method saw in it, and one sheet to compare them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bachvid.folder import Made, RunFolder
from bachvid.pictures.files import write_image, write_video
from bachvid.pictures.frames import Frames
from bachvid.pictures.overlays import show_mask, show_matches
from bachvid.pictures.sheets import Line, contact_sheet, sheet


def make_album(folder: RunFolder, videos: Sequence[Made], twins: Sequence[Made], fps: int) -> Path:
    """Writes all pictures; the path of the contact sheet: the identity, then vanilla above and ours below."""
    for video in [*videos, *twins]:
        write_video(folder / f"{video.name}/video.mp4", video.frames, fps)
    identity = videos[0]
    for video in videos:
        if video.mask is not None:
            write_video(folder / f"{video.name}/mask.mp4", show_mask(video.frames, video.mask), fps)
        if video.partner is not None and identity.mask is not None:
            write_image(folder / f"{video.name}/match.png", match_picture(identity, video))
    rows = [(label(identity), identity.frames)]
    rows += [(f"{label(video)}\nvanilla", video.frames) for video in twins]
    rows += [(f"{label(video)}\nours" if twins else label(video), video.frames) for video in videos[1:]]
    contact = folder / "contact.png"
    write_image(contact, contact_sheet(rows, fps))
    return contact


def match_picture(identity: Made, video: Made) -> Frames:
    """Moments of the identity above those of the video, matched places in the same colour."""
    assert identity.mask is not None and video.mask is not None and video.partner is not None
    painted = show_matches(identity.frames, video.frames, identity.mask, video.mask, video.partner)
    moments = sorted({0, len(video.frames) // 2, len(video.frames) - 1})
    rows = zip((label(identity), label(video)), painted, strict=True)
    return sheet([Line(name, [frames[n] for n in moments]) for name, frames in rows])


def label(video: Made) -> str:
    """What a row of a sheet is called."""
    return f"{video.parts.action}\nidentity" if video.name == "identity" else video.parts.action
