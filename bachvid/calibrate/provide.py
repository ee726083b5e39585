"""Who tells an analysis the truth: the stage's readers, public vision models, or the user's own masks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from bachvid.calibrate.aesthetic import Aesthetic
from bachvid.calibrate.features import Dinov2, EfficientLoFTR, Matcher
from bachvid.calibrate.pretrained import CLIP, DETECTOR, DINOV2, LOFTR, SEGMENTER, licence
from bachvid.calibrate.segment import GroundedSam, Masker, MaskFolder
from bachvid.calibrate.truth import Judge, StageJudge, StageTruth, Truth
from bachvid.calibrate.vision import VisionJudge, VisionTruth
from bachvid.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name models, each by a folder or by an id in the cache, and masks."""
    flag = parser.add_argument
    flag(
        "--truth",
        metavar="stage|vision|FOLDER",
        help="where the character is: by the stage's readers (shipped models), by vision models, or masks of "
        "your own, white on black: FOLDER/000-0.mp4 for videos/000-0.mp4 and so on",
    )
    flag("--matches", choices=("dinov2", "loftr"), default="dinov2", help="who finds places again: dinov2")
    flag("--detector", default=DETECTOR.usual, metavar="MODEL", help=f"{DETECTOR.what}: {DETECTOR.usual}")
    flag("--segmenter", default=SEGMENTER.usual, metavar="MODEL", help=f"{SEGMENTER.what}: {SEGMENTER.usual}")
    flag("--dinov2", default=DINOV2.usual, metavar="MODEL", help=DINOV2.usual)
    flag("--loftr", default=LOFTR.usual, metavar="MODEL", help=LOFTR.usual)
    flag(
        "--clip", default=CLIP.usual, metavar="MODEL", help=f"that the aesthetic head stands on: {CLIP.usual}"
    )
    flag("--aesthetic", type=Path, metavar="FILE", help="the head: sa_0_4_vit_l_14_linear.pth")


def find_truth(
    args: argparse.Namespace, of_stage: bool, device: torch.device, say: Callable[[str], None]
) -> tuple[Truth, Judge]:
    """Truth and judge as the flags name them; a line of each model's licence is said.

    WeightsError or UsageError if something that is needed is not there.
    """
    if (args.truth or ("stage" if of_stage else "vision")) == "stage":
        return StageTruth(), StageJudge()
    if args.aesthetic is None:
        raise UsageError(
            "Who shall say how good a video looks? Name the aesthetic head's file: --aesthetic "
            "sa_0_4_vit_l_14_linear.pth, from the LAION aesthetic predictor."
        )
    dinov2 = Dinov2(args.dinov2, device)
    matcher: Matcher = EfficientLoFTR(args.loftr, device) if args.matches == "loftr" else dinov2
    names = [args.dinov2, args.clip, str(args.aesthetic), *([args.loftr] if args.matches == "loftr" else [])]
    masker: Masker
    if args.truth in (None, "vision"):
        masker = GroundedSam(args.detector, args.segmenter, device)
        names += [args.detector, args.segmenter]
    else:
        masker = MaskFolder(Path(args.truth))
    for name in names:
        say(licence(name))
    return VisionTruth(masker, matcher), VisionJudge(Aesthetic(args.aesthetic, args.clip, device), dinov2)
