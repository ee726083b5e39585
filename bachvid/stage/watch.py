"""Whether a denoiser in training follows its words: attention to them against the true puppet, and walks
told from their mirror images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.method.attends import TextMass
from bachvid.method.mask import Spans, foreground
from bachvid.method.spans import Parts, find_spans
from bachvid.models.attention import Site
from bachvid.models.grid import Grid
from bachvid.models.text import Tokenizer
from bachvid.stage.family import AnyDiT, Lesson


def attention_finds_puppet(
    model: AnyDiT,
    sites: Sequence[Site],
    shown: Lesson,
    text: Tensor,
    spans: Sequence[Spans],
    masks: Tensor,
) -> dict[str, float]:
    """AUC and IoU of scores summed over all `sites` (Eq. 3-4) against the puppet's masks (B, F, H, W).

    A token is puppet where at least half of its pixels are. The AUC should pass 0.95 within minutes, and the
    loss does not tell.
    """
    grid = model.grid(shown.noisy)
    truth = token_masks(masks, grid)  # B N
    aucs, ious = [], []
    for i, words in enumerate(spans):
        seen = {site: TextMass(words, grid.tokens) for site in sites}
        row = slice(i, i + 1)
        model(shown.noisy[row], shown.t[row], text[row], seen)
        scores = torch.stack([mass.scores for mass in seen.values()]).sum(0)  # 2 N
        aucs.append(auc(scores[1] - scores[0], truth[i]))
        mask = foreground(scores)
        ious.append(((mask & truth[i]).sum() / (mask | truth[i]).sum().clamp(min=1)).item())
    return {"auc": round(sum(aucs) / len(aucs), 4), "iou": round(sum(ious) / len(ious), 4)}


def sides_told(model: AnyDiT, shown: Lesson, text: Tensor, mirrored: Tensor) -> float:
    """Share of the walks that their captions (B, L, C) explain better than the `mirrored` ones do.

    Chance is 0.5. A model may follow all other words for hours before it learns which way a walk goes, and
    no loss tells.
    """
    own, other = (
        (model(shown.noisy, shown.t, words) - shown.answer).square().flatten(1).mean(1)
        for words in (text, mirrored)
    )
    return round((own < other).float().mean().item(), 4)


def caption_spans(parts: Parts, tokenizer: Tokenizer) -> Spans:
    """The tokens of a caption's background and character in its prompt, background first."""
    offsets = tokenizer.encode(parts.prompt()).offsets
    return find_spans(offsets, parts.ranges(), limit=len(offsets))


def token_masks(masks: Tensor, grid: Grid) -> Tensor:
    """Pixel masks (B, F, H, W) as token masks (B, N), bool; the first frame has tokens of its own."""
    later = masks.shape[1] - 1
    parts = [masks[:, :1]]
    if grid.frames > 1:
        parts.append(masks[:, 1:].unflatten(1, (grid.frames - 1, later // (grid.frames - 1))).mean(2))
    return (F.adaptive_avg_pool2d(torch.cat(parts, dim=1), (grid.height, grid.width)) >= 0.5).flatten(1)


def auc(scores: Tensor, truth: Tensor) -> float:
    """Chance that a true token outscores a false one, for scores and truth (N,)."""
    ranks = scores.argsort().argsort().double() + 1
    inside, outside = int(truth.sum()), int((~truth).sum())
    if not inside or not outside:
        return 1.0
    return ((ranks[truth].sum() - inside * (inside + 1) / 2) / (inside * outside)).item()
