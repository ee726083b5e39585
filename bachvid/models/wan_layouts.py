"""What diffusers calls the parameters of our Wan autoencoder, which have the original release's names."""

from __future__ import annotations

from collections.abc import Mapping

from bachvid.models.layouts import Layout


def wan_vae_diffusers(blocks: int, num_res_blocks: int) -> Layout:
    """diffusers' names for an autoencoder of so many blocks, each with so many residuals in the encoder.

    The numbers matter since our decoder counts its parts in one go, and diffusers block by block.
    """
    return Layout(
        {
            "conv1.*": "quant_conv.*",
            "conv2.*": "post_quant_conv.*",
            **_inside("encoder", "encoder", _NETWORK),
            **_inside("encoder.downsamples.{}", "encoder.down_blocks.{}", _RESIDUAL),
            "encoder.downsamples.{}.*": "encoder.down_blocks.{}.*",  # what halves frames: the same names
            **_inside("decoder", "decoder", _NETWORK),
            **_inside("decoder", "decoder", _upsamples(blocks, num_res_blocks + 1)),
        }
    )


def _upsamples(blocks: int, residuals: int) -> dict[str, str]:
    rows: dict[str, str] = {}
    for block in range(blocks):
        start, theirs = block * (residuals + 1), f"up_blocks.{block}"
        for i in range(residuals):
            rows |= _inside(f"upsamples.{start + i}", f"{theirs}.resnets.{i}", _RESIDUAL)
        if block < blocks - 1:
            rows[f"upsamples.{start + residuals}.*"] = f"{theirs}.upsamplers.0.*"
    return rows


def _inside(ours: str, theirs: str, rows: Mapping[str, str]) -> dict[str, str]:
    """The rows of a part that stands in another."""
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in rows.items()}


_RESIDUAL = {
    "residual.0.*": "norm1.*",
    "residual.2.*": "conv1.*",
    "residual.3.*": "norm2.*",
    "residual.6.*": "conv2.*",
    "shortcut.*": "conv_shortcut.*",
}
_NETWORK = {  # the encoder, or the decoder
    "conv1.*": "conv_in.*",
    **_inside("middle.0", "mid_block.resnets.0", _RESIDUAL),
    "middle.1.*": "mid_block.attentions.0.*",
    **_inside("middle.2", "mid_block.resnets.1", _RESIDUAL),
    "head.0.*": "norm_out.*",
    "head.2.*": "conv_out.*",
}
