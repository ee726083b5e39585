"""What an analysis is held against where the world is not ours: public vision models, or the user's masks."""

from __future__ import annotations

from torch import Tensor

from bachvid.calibrate.aesthetic import Aesthetic
from bachvid.calibrate.features import Dinov2, Matcher, likeness
from bachvid.calibrate.segment import Masker
from bachvid.calibrate.truth import Eyes, Judged, Seen
from bachvid.method.spans import Parts
from bachvid.models.grid import Grid
from bachvid.pictures.frames import Frames


class VisionTruth(Eyes):
    """Truth by a masker, which finds the character, and a matcher, which finds its places again."""

    def __init__(self, masker: Masker, matcher: Matcher) -> None:
        self.masker, self.matcher = masker, matcher
        self.about = f"{masker.about}; {matcher.about}"

    def see(self, name: str, frames: Frames, parts: Parts) -> Seen:
        return Seen(self.masker(name, frames, parts.character), self.matcher.look(frames))

    def partners(self, frame: Seen, identity: Seen, grid: Grid) -> Tensor:
        return self.matcher.partners(frame, identity, grid)


class VisionJudge:
    """Scores by an aesthetic head (Eq. 9) and by DINOv2 (Eq. 15)."""

    def __init__(self, aesthetic: Aesthetic, features: Dinov2) -> None:
        self.aesthetic, self.features = aesthetic, features
        self.about = f"{aesthetic.about}; {features.about}"

    def judge(self, frames: Frames) -> Judged:
        return Judged(self.aesthetic(frames), self.features.classes(frames))

    def likeness(self, video: Judged, other: Judged) -> float:
        return likeness(video.shows, other.shows)
