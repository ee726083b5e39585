"""How the puppet moves: each verb is a few amounts, and the pose at a phase is one formula for all verbs."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from bachvid.stage.body import BUILD_WIDTH, HIP, LEG_LENGTH, SHOULDER
from bachvid.stage.world import MARK, Clip

LOCATION_X = {"left": -3 * MARK, "middle": 0.0, "right": 3 * MARK}
SOLES = MARK  # where the puppet stands, above the bottom edge
_ARM_AT_REST = -1.15  # radians below the horizontal


@dataclass(frozen=True)
class Gesture:
    """How much of each movement a verb makes: lengths in heights of the picture, angles in radians."""

    travel: float = 0.0  # path along the stage
    hop: float = 0.0  # height of its two hops
    crouch: float = 0.0  # share by which the legs shorten
    bow: float = 0.0  # angle by which the trunk leans to the heading
    squeeze: float = 0.0  # share by which the paper puppet looks narrower side-on
    wave: float = 0.0  # how far the right arm goes up, 1 = all the way
    stride: float = 0.0  # how far the legs swing


GESTURES = {
    "stands": Gesture(),
    "jumps": Gesture(hop=MARK),
    "waves": Gesture(wave=1.0),
    "crouches": Gesture(crouch=0.7),
    "walks": Gesture(travel=4 * MARK, stride=1.0),
    "leaps": Gesture(travel=4 * MARK, hop=MARK),
    "spins": Gesture(squeeze=0.5),
    "bows": Gesture(bow=0.7),
}


@dataclass(frozen=True)
class Pose:
    """Where everything is in each frame; all tensors are (B, F)."""

    x: Tensor
    y: Tensor
    scale: Tensor
    width: Tensor  # 1 facing us, less while turned
    build: Tensor
    leg: Tensor  # leg length in units of the rest puppet's
    swing: Tensor  # sideways shear of the left leg; the right one's is opposite
    lean: Tensor  # the trunk's angle, positive to the right
    left_arm: Tensor  # angles above the horizontal
    right_arm: Tensor


def pose(clips: list[Clip], phases: Tensor) -> Pose:
    """The pose of every clip's puppet at `phases` (B, F), 0 at the start of the action and 1 at its end."""
    numbers = torch.tensor([_numbers(clip) for clip in clips], dtype=torch.float32)
    columns = numbers.to(phases).unsqueeze(-1).unbind(1)  # each (B, 1)
    place, sole, scale, build, leg, heading, travel, hop, crouch, bow, squeeze, wave, stride = columns
    beat = (2 * math.pi * phases).sin().abs()  # up and down twice
    swell = (math.pi * phases).sin() ** 2  # there and back once
    swing = (3 * math.pi * phases).sin()  # to and fro; at no inner quarter of the action in the middle
    lean = bow * swell * heading
    arms = _ARM_AT_REST + 0.9 * crouch * swell + squeeze
    return Pose(
        x=place + heading * travel * (phases - 0.5) - 0.09 * lean * scale,
        y=sole + hop * beat,
        scale=scale.expand_as(phases),
        width=1 - squeeze * (2 * math.pi * phases).sin() ** 2,
        build=build.expand_as(phases),
        leg=leg * (1 - crouch * swell),
        swing=0.55 * stride * swing,
        lean=lean,
        left_arm=arms,
        right_arm=arms + wave * (2.1 + 0.6 * swing),
    )


def into_body(now: Pose, x: Tensor, y: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Body coordinates of picture positions, for each part as if the position lay on it.

    `x` (B, F, 1, w) from the middle and `y` (B, F, h, 1) up from the bottom edge, in heights; the result's
    tensors broadcast to (B, F, h, w).
    """
    p = Pose(**{name: value[..., None, None] for name, value in vars(now).items()})
    across, up = (x - p.x) / (p.scale * p.width), (y - p.y) / p.scale
    hip = HIP * p.leg
    slide = p.swing * (hip - up).clamp_min(0)
    side, over = _turned(across, up - hip, p.lean)
    over = over + HIP
    found = {
        "torso": (side / p.build, over),
        "head": (side, over),
        "left_leg": (across - slide, up / p.leg),
        "right_leg": (across + slide, up / p.leg),
    }
    for part, sign, angle in (("left_arm", -1, p.left_arm), ("right_arm", 1, p.right_arm)):
        along, off = _turned(sign * side - SHOULDER[0] * p.build, over - SHOULDER[1], -angle)
        found[part] = sign * (along + SHOULDER[0]), off + SHOULDER[1]
    return found


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The position before a clockwise turn by `angle` brought it to (x, y)."""
    cos, sin = angle.cos(), angle.sin()
    return x * cos - y * sin, x * sin + y * cos


def _numbers(clip: Clip) -> tuple[float, ...]:
    gesture = GESTURES[clip.verb]
    place = clip.jitter[0] + (0.0 if gesture.travel else LOCATION_X[clip.where])
    frame = (
        place,
        SOLES + clip.jitter[1],
        clip.scale,
        BUILD_WIDTH[clip.build],
        LEG_LENGTH[clip.legs],
        clip.heading,
    )
    return *frame, *astuple(gesture)
