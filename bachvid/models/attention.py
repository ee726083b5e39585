"""Where tokens attend, and how: to be read before either denoiser.

An attention layer is three stages, project -> attend -> merge, and the middle one is an argument. A model's
forward takes `attend_at`, a mapping from a `Site` to an `Attend`; a site that is absent attends plainly.
Nothing is ever left on a module.

Letters in shapes: B batch, H heads, L tokens, D head width, C model width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Site(NamedTuple):
    """A place where tokens attend; layers count from 1, as in the paper."""

    kind: str  # "joint" (CogVideoX: text and video in one sequence), "self" or "cross" (Wan)
    layer: int


class Attend(Protocol):
    """What may stand at a site."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        """Attention output (B H Lq D), for q (B H Lq D) and k, v (B H Lk D): normalised, not yet rotated."""
        ...


NOWHERE: Mapping[Site, Attend] = MappingProxyType({})


def rotate(x: Tensor, freqs: Tensor | None) -> Tensor:
    """Tokens x (B H L D) encoded at the positions of `freqs` (L D/2 2), in float32, returned in x's dtype.

    The table's first axis is the token, so encoding at other positions is `rotate(x, freqs[where])` (Eq.
    12). A model whose positions are not rotary passes None and gets x back. Agrees with diffusers'
    `apply_rotary_emb` to the last bit.
    """
    if freqs is None:
        return x
    cos, sin = freqs.unbind(-1)  # L D/2
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # B H L D/2
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)  # B H L D


def attend(q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
    """Softmax(q k^T / sqrt(D)) v (B H Lq D) (Eq. 1): the default at every site."""
    return F.scaled_dot_product_attention(rotate(q, freqs), rotate(k, freqs), v)


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention output (B H Lq D) and each query's log-sum-exp (B H Lq) of its scaled scores, natural log.

    q, k and v are already rotated. A query without keys gets zeros and -inf. With the log-sum-exp, exact
    columns of the softmax are `exp(q k^T / sqrt(D) - lse)`, and outputs over disjoint key sets can be
    merged. PyTorch has no public function that returns it, so its own fused operators are called where they
    exist; everywhere else rows are taken in blocks.
    """
    batch, heads, queries, width = q.shape
    if k.shape[:2] != (batch, heads) or k.shape[-1] != width or k.shape != v.shape:
        raise ValueError(
            f"keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit queries {tuple(q.shape)}"
        )
    if queries == 0 or k.shape[2] == 0:  # the fused operators crash on these
        return torch.zeros_like(q), q.new_full((batch, heads, queries), -torch.inf, dtype=torch.float32)
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    if q.device.type == "cuda":
        asked = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
        if torch.backends.cuda.can_use_flash_attention(asked):
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
        if torch.backends.cuda.can_use_efficient_attention(asked):
            out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
            return out, lse[..., :queries]  # the operator pads that axis to a multiple of 32
    return _attend_in_blocks(q, k, v)


def reject_unknown(attend_at: Mapping[Site, Attend], sites: Iterable[Site]) -> None:
    """Raise ValueError for a site that the model does not have: a typo must not mean "off"."""
    unknown = sorted(set(attend_at) - set(sites))
    if unknown:
        known = ", ".join(f"{kind} {layer}" for kind, layer in sites)
        raise ValueError(
            f"no such site: {unknown[0].kind} {unknown[0].layer}. This model's sites are: {known}"
        )


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, rows: int = 256) -> tuple[Tensor, Tensor]:
    outs, lses, keys = [], [], k.float().transpose(-1, -2)  # B H D Lk
    for some in q.split(rows, dim=2):
        scores = some.float() @ keys * q.shape[-1] ** -0.5  # B H rows Lk
        lses.append(scores.logsumexp(-1))
        outs.append(scores.softmax(-1).to(v.dtype) @ v)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)
