"""Who tells an analysis the truth: the stage's readers, public vision models, or the user's own masks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from bachvid.calibrate.aesthetic import Aesthetic
from bachvid.calibrate.consensus import Consensus
from bachvid.calibrate.features import Dinov2, EfficientLoFTR, Matcher
from bachvid.calibrate.pretrained import CLIP, DETECTOR, DINOV2, LOFTR, SEGMENTER, licence
from bachvid.calibrate.segment import GroundedSam, MaskFolder
from bachvid.calibrate.truth import Judge, StageJudge, StageTruth, Truth
from bachvid.calibrate.vision import VisionJudge, VisionTruth
from bachvid.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that name models, each by a folder or by an id in the cache, and masks."""
    flag = parser.add_argument
    flag(
        "--truth",
        metavar="stage|vision|self|FOLDER",
        help="where the character is: by the stage's readers (shipped models), by vision models, by what the "
        "model's own layers agree in, or masks of your own, white on black: FOLDER/000-0.mp4 for "
        "videos/000-0.mp4 and so on",
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
) -> tuple[Truth, Judge | None]:
    """Truth and judge as the flags name them; a line of each model's licence is said.

    Where all layers are to lend, nobody need judge videos. WeightsError or UsageError if something that is
    needed is not there.
    """
    kind, judged = truth_kind(args, of_stage), has_judge(args, of_stage)
    if kind == "stage":
        return StageTruth(), StageJudge() if judged else None
    if not judged and args.vital != "all":
        raise UsageError(
            "There is no judge of how good a video looks. Name the LAION aesthetic predictor's file, "
            "--aesthetic sa_0_4_vit_l_14_linear.pth, or let all layers lend: --vital all."
        )
    dinov2 = cache(lambda: Dinov2(args.dinov2, device))
    truth = Consensus() if kind == "self" else vision_truth(args, kind, device, dinov2)
    judge = VisionJudge(Aesthetic(args.aesthetic, args.clip, device), dinov2()) if judged else None
    models = {
        "dinov2": judged or kind != "self",
        "loftr": kind != "self" and args.matches == "loftr",
        "clip": judged,
        "aesthetic": judged,
        "detector": kind == "vision",
        "segmenter": kind == "vision",
    }
    for flag, used in models.items():
        if used:
            say(licence(str(getattr(args, flag))))
    return truth, judge


def truth_kind(args: argparse.Namespace, of_stage: bool) -> str:
    """Who tells the truth: "stage", "vision", "self", or a folder's name; UsageError if it is none."""
    kind = args.truth or ("stage" if of_stage else "vision")
    if kind not in ("stage", "vision", "self") and not Path(kind).is_dir():
        raise UsageError(
            f"{kind} is neither stage, vision nor self, nor a folder with masks. Use one of these words, or "
            "name a folder that holds 000-0.mp4 and so on: --truth."
        )
    return kind


def has_judge(args: argparse.Namespace, of_stage: bool) -> bool:
    """Whether somebody says how good videos look; nobody need where none is made without a layer."""
    return args.left_out > 0 and (truth_kind(args, of_stage) == "stage" or args.aesthetic is not None)


def vision_truth(
    args: argparse.Namespace, kind: str, device: torch.device, dinov2: Callable[[], Dinov2]
) -> VisionTruth:
    """Truth by vision models; or by the user's masks in the folder `kind`, whose places they find again."""
    matcher: Matcher = EfficientLoFTR(args.loftr, device) if args.matches == "loftr" else dinov2()
    if kind == "vision":
        return VisionTruth(GroundedSam(args.detector, args.segmenter, device), matcher)
    return VisionTruth(MaskFolder(Path(kind)), matcher)
