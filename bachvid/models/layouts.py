"""What other releases call our parameters: tables of patterns, one row for each kind of parameter.

In a pattern, `{}` is the number of a block or a layer and `*` the rest of the name (`weight` or `bias`). The
first row that fits a name is the one that counts.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple


class Rows(NamedTuple):
    """A stored tensor, or some of the equal blocks of rows that it is fused from, in the order wanted."""

    name: str
    blocks: tuple[int, ...] = (0,)
    of: int = 1


@dataclass(frozen=True)
class Layout:
    """How one release stores the tensors of a model: our names on the left, theirs on the right."""

    rows: Mapping[str, str | Rows]
    dropped: tuple[str, ...] = ()  # stored, but no parameter of ours

    def source(self, name: str) -> Rows:
        """Where our parameter `name` is stored."""
        for ours, theirs in self.rows.items():
            found = _pattern(ours).fullmatch(name)
            if found:
                stored = theirs if isinstance(theirs, Rows) else Rows(theirs)
                return stored._replace(name=re.sub(r"\*", "{}", stored.name).format(*found.groups()))
        raise AssertionError(f"no row of the layout fits {name}")

    def keeps(self, stored: str) -> bool:
        """Whether a stored tensor is meant to become one of ours."""
        return not any(fnmatchcase(stored, pattern) for pattern in self.dropped)


@cache
def _pattern(ours: str) -> re.Pattern[str]:
    return re.compile(re.escape(ours).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)"))


SAME = Layout({"*": "*"})  # the release's names are ours

COGVIDEOX_DIFFUSERS = Layout(
    {
        "patch_embed.*": "patch_embed.proj.*",
        "text_embed.*": "patch_embed.text_proj.*",
        "time_embed.0.*": "time_embedding.linear_1.*",
        "time_embed.2.*": "time_embedding.linear_2.*",
        "blocks.{}.attention_norm.modulation.*": "transformer_blocks.{}.norm1.linear.*",
        "blocks.{}.attention_norm.norm.*": "transformer_blocks.{}.norm1.norm.*",
        "blocks.{}.attention.q.*": "transformer_blocks.{}.attn1.to_q.*",
        "blocks.{}.attention.k.*": "transformer_blocks.{}.attn1.to_k.*",
        "blocks.{}.attention.v.*": "transformer_blocks.{}.attn1.to_v.*",
        "blocks.{}.attention.norm_q.*": "transformer_blocks.{}.attn1.norm_q.*",
        "blocks.{}.attention.norm_k.*": "transformer_blocks.{}.attn1.norm_k.*",
        "blocks.{}.attention.out.*": "transformer_blocks.{}.attn1.to_out.0.*",
        "blocks.{}.feed_forward_norm.modulation.*": "transformer_blocks.{}.norm2.linear.*",
        "blocks.{}.feed_forward_norm.norm.*": "transformer_blocks.{}.norm2.norm.*",
        "blocks.{}.feed_forward.up.*": "transformer_blocks.{}.ff.net.0.proj.*",
        "blocks.{}.feed_forward.down.*": "transformer_blocks.{}.ff.net.2.*",
        "norm.*": "norm_final.*",
        "head_norm.modulation.*": "norm_out.linear.*",
        "head_norm.norm.*": "norm_out.norm.*",
        "head.*": "proj_out.*",
    }
)

_QKV = "transformer.layers.{}.attention.query_key_value.*"
# Twelve blocks of rows: the video's shift, scale and gate for the attention and for the feed-forward, then
# the same six for the text.
_MODULATION = "mixins.adaln_layer.adaLN_modulations.{}.1.*"

COGVIDEOX_SAT = Layout(
    {
        "patch_embed.*": "mixins.patch_embed.proj.*",
        "text_embed.*": "mixins.patch_embed.text_proj.*",
        "time_embed.{}.*": "time_embed.{}.*",
        "blocks.{}.attention_norm.modulation.*": Rows(_MODULATION, (0, 1, 2, 6, 7, 8), of=12),
        "blocks.{}.attention_norm.norm.*": "transformer.layers.{}.input_layernorm.*",
        "blocks.{}.attention.q.*": Rows(_QKV, (0,), of=3),
        "blocks.{}.attention.k.*": Rows(_QKV, (1,), of=3),
        "blocks.{}.attention.v.*": Rows(_QKV, (2,), of=3),
        "blocks.{}.attention.norm_q.*": "mixins.adaln_layer.query_layernorm_list.{}.*",
        "blocks.{}.attention.norm_k.*": "mixins.adaln_layer.key_layernorm_list.{}.*",
        "blocks.{}.attention.out.*": "transformer.layers.{}.attention.dense.*",
        "blocks.{}.feed_forward_norm.modulation.*": Rows(_MODULATION, (3, 4, 5, 9, 10, 11), of=12),
        "blocks.{}.feed_forward_norm.norm.*": "transformer.layers.{}.post_attention_layernorm.*",
        "blocks.{}.feed_forward.up.*": "transformer.layers.{}.mlp.dense_h_to_4h.*",
        "blocks.{}.feed_forward.down.*": "transformer.layers.{}.mlp.dense_4h_to_h.*",
        "norm.*": "transformer.final_layernorm.*",
        "head_norm.modulation.*": "mixins.final_layer.adaLN_modulation.1.*",
        "head_norm.norm.*": "mixins.final_layer.norm_final.*",
        "head.*": "mixins.final_layer.linear.*",
    },
    # Positions are computed, not stored, and no token is embedded here.
    dropped=("mixins.pos_embed.*", "*embed_tokens*", "*freqs_sin", "*freqs_cos", "*position_embedding*"),
)

WAN_DIFFUSERS = Layout(
    {
        "time_embedding.0.*": "condition_embedder.time_embedder.linear_1.*",
        "time_embedding.2.*": "condition_embedder.time_embedder.linear_2.*",
        "time_projection.1.*": "condition_embedder.time_proj.*",
        "text_embedding.0.*": "condition_embedder.text_embedder.linear_1.*",
        "text_embedding.2.*": "condition_embedder.text_embedder.linear_2.*",
        "blocks.{}.modulation": "blocks.{}.scale_shift_table",
        "blocks.{}.self_attn.q.*": "blocks.{}.attn1.to_q.*",
        "blocks.{}.self_attn.k.*": "blocks.{}.attn1.to_k.*",
        "blocks.{}.self_attn.v.*": "blocks.{}.attn1.to_v.*",
        "blocks.{}.self_attn.o.*": "blocks.{}.attn1.to_out.0.*",
        "blocks.{}.self_attn.*": "blocks.{}.attn1.*",
        "blocks.{}.norm3.*": "blocks.{}.norm2.*",  # a trap: diffusers' norm3 is the release's norm2,
        "blocks.{}.cross_attn.q.*": "blocks.{}.attn2.to_q.*",  # and neither has parameters
        "blocks.{}.cross_attn.k.*": "blocks.{}.attn2.to_k.*",
        "blocks.{}.cross_attn.v.*": "blocks.{}.attn2.to_v.*",
        "blocks.{}.cross_attn.o.*": "blocks.{}.attn2.to_out.0.*",
        "blocks.{}.cross_attn.*": "blocks.{}.attn2.*",
        "blocks.{}.ffn.0.*": "blocks.{}.ffn.net.0.proj.*",
        "blocks.{}.ffn.2.*": "blocks.{}.ffn.net.2.*",
        "head.modulation": "scale_shift_table",
        "head.head.*": "proj_out.*",
        "*": "*",
    }
)

COGVIDEOX_VAE_DIFFUSERS = SAME  # our VAE has the names of diffusers

_SAT_ENCODER = {
    "encoder.down_blocks.{}.resnets.{}.conv_shortcut.*": "encoder.down.{}.block.{}.nin_shortcut.*",
    "encoder.down_blocks.{}.resnets.{}.*": "encoder.down.{}.block.{}.*",
    "encoder.down_blocks.{}.downsamplers.0.*": "encoder.down.{}.downsample.*",
    "encoder.mid_block.resnets.0.*": "encoder.mid.block_1.*",
    "encoder.mid_block.resnets.1.*": "encoder.mid.block_2.*",
}
_SAT_DECODER_BLOCK = {
    "decoder.up_blocks.{block}.resnets.{}.conv_shortcut.*": "decoder.up.{level}.block.{}.nin_shortcut.*",
    "decoder.up_blocks.{block}.resnets.{}.*": "decoder.up.{level}.block.{}.*",
    "decoder.up_blocks.{block}.upsamplers.0.*": "decoder.up.{level}.upsample.*",
}
_SAT_DECODER = {  # blocks count as they run, the release counts them from the pictures inwards
    ours.replace("{block}", str(block)): theirs.replace("{level}", str(3 - block))
    for block in range(4)
    for ours, theirs in _SAT_DECODER_BLOCK.items()
} | {
    "decoder.mid_block.resnets.0.*": "decoder.mid.block_1.*",
    "decoder.mid_block.resnets.1.*": "decoder.mid.block_2.*",
}
COGVIDEOX_VAE_SAT = Layout({**_SAT_ENCODER, **_SAT_DECODER, "*": "*"}, dropped=("loss.*",))

TOKENIZER = "spiece_model"  # the bytes of a spiece.model, which ComfyUI's files carry among their tensors
_NO_ENCODER = ("decoder.*", "lm_head.*", TOKENIZER)  # a full T5 decodes too
_T5 = Layout({"*": "*"}, dropped=("encoder.embed_tokens.weight", *_NO_ENCODER))
_T5_SECOND_NAME = Layout({"shared.*": "encoder.embed_tokens.*", "*": "*"}, dropped=_NO_ENCODER)


def t5_encoder(names: Container[str]) -> Layout:
    """How transformers stores a T5's encoder, the names in a file given.

    One table embeds the tokens; a file has it under its first name, its second, or both.
    """
    return _T5 if "shared.weight" in names else _T5_SECOND_NAME
