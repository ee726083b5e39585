"""Several videos on their way through the network, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bachvid.models.attention import NOWHERE, Attend, Site, reject_unknown
from bachvid.models.parts import Model


@dataclass
class Pass:
    """One row going once through the network, at batch 1."""

    latents: Tensor  # of one video, as the model takes them
    text: Tensor  # 1 L text_width
    attend_at: Mapping[Site, Attend] = field(default_factory=lambda: NOWHERE)
    until: int | None = None  # the last layer it needs to go through; None: all of them, to the prediction


def forward(model: Model, t: Tensor, passes: Sequence[Pass]) -> list[Tensor]:
    """The predictions at timestep t (1,) of the passes that go through to the end, in their order.

    Every block is passed by all rows before the next block begins, in the given order. So what the first
    row leaves in a `Record` is read by the others in the same block and may be overwritten in the next:
    nothing is kept across layers. Rows never share a batch: each matrix product has the shape it has when a
    video is alone, which keeps videos equal to the bit.
    """
    for row in passes:
        reject_unknown(row.attend_at, model.sites)
    streams = [model.begin(row.latents, t, row.text) for row in passes]
    for layer, block in enumerate(model.blocks, start=1):
        for n, row in enumerate(passes):
            if row.until is None or layer <= row.until:
                streams[n] = block(streams[n], row.attend_at)
    ended = zip(passes, streams, strict=True)
    return [model.finish(stream) for row, stream in ended if row.until is None]
