"""What can be on the stage: the stated words, the hidden state, and how clips are drawn at random.

A caption states some attributes of a clip and is silent about others. A model must scatter in what is hidden,
clip by clip; bringing that scatter to zero inside a group is what BachVid is for, so both halves are written
out here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from dataclasses import dataclass
from typing import NamedTuple

PLACES = ("forest", "village", "valley", "harbour", "city")
SKIES = ("blue", "navy", "mint", "silver")
LANDMARKS = ("tower", "windmill", "tent", "gate", "balloon")
KINDS = ("rabbit", "bear", "fox", "robot", "elephant")
COLOURS = ("red", "orange", "pink", "brown", "lilac")
ACCESSORIES = ("hat", "scarf", "cape", "skirt")
CLOTH_COLOURS = ("white", "black", "purple", "yellow")

LOCATED_VERBS = ("stands", "jumps", "waves", "crouches")
MOVING_VERBS = ("walks", "leaps", "spins", "bows")
VERBS = LOCATED_VERBS + MOVING_VERBS
LOCATIONS = ("left", "middle", "right")
_HEADINGS = {"left": -1, "right": 1}  # of a walk

BUILDS = ("slim", "plump")
LEGS = ("short", "long")
EYES = ("dots", "wide", "mask")
TROUSERS = CLOTH_COLOURS
BELLIES = ("plain", "patch", "braces")
BADGE_CELLS, BADGE_COLOURS = 4, 3

ASPECT = 1.5  # width over height of every stage
MARK = 1 / 8  # heights of the picture: puppets stand on marks and go from mark to mark
SCALES = (0.85, 1.0, 1.15)
HORIZONS = (0.375, 0.4375)  # heights of the picture
SIZES = (0.85, 1.0)  # of what stands on the horizon
HORIZON_SLOTS = (
    6  # each empty (0), with the place's first (1) or second thing (2), or the landmark, just once (3)
)
LANDMARK = 3
SKY_SLOTS = 3  # each empty, a cloud, or the sun (one sun at most)
FRONT_SLOTS = 4  # each bare or with a small thing of the place
HELD_OUT_SHARE = 10  # one combination in ten


class Combination(NamedTuple):
    """Everything a caption states apart from the action."""

    place: str
    sky: str
    landmark: str
    kind: str
    colour: str
    accessory: str
    accessory_colour: str


@dataclass(frozen=True)
class Clip:
    """One clip of the stage world: what its caption states, what it hides, and the shot.

    Lengths are in heights of the picture. `where` is where a located verb happens, where an unstated one
    happens to happen (spins, bows), and for `walks` the side walked to; `heading` (-1 left, +1 right) is the
    side a walk, a leap or a bow turns to.
    """

    place: str
    sky: str
    landmark: str
    kind: str
    colour: str
    accessory: str
    accessory_colour: str
    verb: str
    where: str
    # hidden, the stage's
    layout: tuple[int, ...]
    sky_slots: tuple[int, ...]
    front: tuple[int, ...]
    sizes: tuple[float, ...]
    horizon: float
    stage_tint: tuple[float, float, float]
    # hidden, the puppet's
    build: str
    legs: str
    eyes: str
    trousers: str
    belly: str
    badge: tuple[int, ...]
    puppet_tint: tuple[float, float, float]
    # the shot
    heading: int
    jitter: tuple[float, float]
    scale: float

    @property
    def landmark_slot(self) -> int:
        """The horizon slot with the landmark."""
        return self.layout.index(LANDMARK)

    @property
    def combination(self) -> Combination:
        """The stated background and character."""
        return Combination(*(getattr(self, name) for name in Combination._fields))


STATED = Combination._fields
HIDDEN_STAGE = ("layout", "sky_slots", "front", "sizes", "horizon", "stage_tint")
HIDDEN_PUPPET = ("build", "legs", "eyes", "trousers", "belly", "badge", "puppet_tint")


def sample_clip(rng: random.Random, held_out: bool = False) -> Clip:
    """A random clip whose combination is in the held-out tenth exactly when `held_out` is true."""
    return _dress(rng, _sample_combination(rng, held_out), *_sample_action(rng))


ACTIONS = (
    *((verb, where) for verb in LOCATED_VERBS for where in LOCATIONS),
    *(("walks", "left"), ("walks", "right"), ("leaps", ""), ("spins", ""), ("bows", "")),
)  # an empty place is drawn


def sample_group(rng: random.Random, prompts: int, held_out: bool = True) -> list[Clip]:
    """`prompts` clips of one stated background and character with different actions, hidden attributes drawn
    anew.

    Raises ValueError when there are not that many different actions.
    """
    if not 1 <= prompts <= len(ACTIONS):
        raise ValueError(f"a group has 1 to {len(ACTIONS)} prompts, not {prompts}: ask for fewer")
    combination = _sample_combination(rng, held_out)
    chosen = rng.sample(ACTIONS, prompts)
    return [_dress(rng, combination, verb, where or rng.choice(LOCATIONS)) for verb, where in chosen]


def walking(clip: Clip, where: str) -> Clip:
    """The clip as a walk to the left or to the right."""
    return dataclasses.replace(clip, verb="walks", where=where, heading=_HEADINGS[where])


def share_hidden(group: list[Clip]) -> list[Clip]:
    """The group with the hidden attributes of its first clip: what perfect consistency looks like."""
    kept = {name: getattr(group[0], name) for name in HIDDEN_STAGE + HIDDEN_PUPPET}
    return [dataclasses.replace(clip, **kept) for clip in group]


def is_held_out(clip: Clip | Combination) -> bool:
    """Whether the combination belongs to the fixed tenth that is never rendered in training."""
    combination = clip.combination if isinstance(clip, Clip) else clip
    digest = hashlib.sha256(" ".join(combination).encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def _sample_combination(rng: random.Random, held_out: bool) -> Combination:
    vocabularies = (PLACES, SKIES, LANDMARKS, KINDS, COLOURS, ACCESSORIES, CLOTH_COLOURS)
    while True:
        combination = Combination(*(rng.choice(words) for words in vocabularies))
        if is_held_out(combination) == held_out:
            return combination


def _sample_action(rng: random.Random) -> tuple[str, str]:
    verb = rng.choice(VERBS)
    return verb, rng.choice(tuple(_HEADINGS) if verb == "walks" else LOCATIONS)


def _dress(rng: random.Random, combination: Combination, verb: str, where: str) -> Clip:
    """The clip of a combination and an action, everything hidden drawn at random."""
    landmark_slot = rng.randrange(HORIZON_SLOTS)
    layout = [rng.randrange(LANDMARK) for _ in range(HORIZON_SLOTS)]
    layout[landmark_slot] = LANDMARK
    sky_slots = [rng.randrange(2) for _ in range(SKY_SLOTS)]
    if rng.random() < 0.75:
        sky_slots[rng.randrange(SKY_SLOTS)] = 2
    heading = _HEADINGS[where] if verb == "walks" else rng.choice((-1, 1))
    return Clip(
        **combination._asdict(),
        verb=verb,
        where=where,
        layout=tuple(layout),
        sky_slots=tuple(sky_slots),
        front=tuple(rng.randrange(2) for _ in range(FRONT_SLOTS)),
        sizes=tuple(rng.choice(SIZES) for _ in range(HORIZON_SLOTS)),
        horizon=rng.choice(HORIZONS),
        stage_tint=_tint(rng, 10.0),
        build=rng.choice(BUILDS),
        legs=rng.choice(LEGS),
        eyes=rng.choice(EYES),
        trousers=rng.choice(TROUSERS),
        belly=rng.choice(BELLIES),
        badge=tuple(rng.randrange(BADGE_COLOURS) for _ in range(BADGE_CELLS)),
        puppet_tint=_tint(rng, 7.0),
        heading=heading,
        jitter=(rng.choice((-MARK, 0.0, MARK)), 0.0),
        scale=rng.choice(SCALES),
    )


def _tint(rng: random.Random, reach: float) -> tuple[float, float, float]:
    """A shift of red, green and blue, of 255."""
    return rng.uniform(-reach, reach), rng.uniform(-reach, reach), rng.uniform(-reach, reach)
