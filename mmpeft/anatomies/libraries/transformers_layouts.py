"""Where the parts of transformers' models are: one layout of names per family of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Branch:
    """A sublayer by paths inside its block: the module that returns its output, and those around it.

    ``source`` receives the sublayer's input where ``host`` doesn't. Without ``entry`` that input is the residual stream
    itself, and ``norm`` is the layer that reads the sum behind the sublayer (post-norm); without ``exit`` the host's
    output is what is added to it.
    """

    name: str
    host: str
    source: str = ""
    entry: str = ""
    exit: str = ""
    norm: str = ""


@dataclass(frozen=True)
class BlockLayout:
    """The names of one family: of its stack of blocks, and of what is in a block; paths that don't exist are skipped.

    ``stack`` and ``words`` (the embedding) are paths below the tower's root, ``linears`` the field's names by the ends
    of paths below the block; a fused attention may hold q, k and v ``by_head``. ``tower`` names the tower; "" stands
    for encoder or decoder, by what the root says. In ``parallel`` blocks attention and MLP read the same stream.
    """

    stack: str
    branches: tuple[Branch, ...]
    linears: Mapping[str, str]
    words: str = ""
    tower: str = "decoder"
    parallel: bool = False
    by_head: bool = False


def _projections(attention: str, to: str = "attn", out: str = "out_proj", form: str = "{}_proj") -> dict[str, str]:
    inputs = {f"{attention}.{form.format(letter)}": f"{to}.{letter}" for letter in "qkv"}
    return {**inputs, f"{attention}.{out}": f"{to}.out"}


GATED = {
    "mlp.up_proj": "mlp.up",
    "mlp.gate_proj": "mlp.gate",
    "mlp.down_proj": "mlp.down",
    "mlp.gate_up_proj": "mlp.gate_up",
    **{f"mlp.shared_expert.{name}_proj": f"mlp.shared.{name}" for name in ("up", "gate", "down")},
}
PLAIN = {"fc1": "mlp.up", "fc2": "mlp.down"}
FOUR = {"mlp.dense_h_to_4h": "mlp.up", "mlp.dense_4h_to_h": "mlp.down"}

LLAMA = BlockLayout(
    stack="layers",
    branches=(
        Branch("attn", "self_attn", entry="input_layernorm"),
        Branch("mlp", "mlp", entry="post_attention_layernorm"),
    ),
    linears={**_projections("self_attn", out="o_proj"), "self_attn.qkv_proj": "attn.qkv", **GATED},
    words="embed_tokens",
)
GEMMA2 = replace(
    LLAMA,
    branches=(
        Branch("attn", "self_attn", entry="input_layernorm", exit="post_attention_layernorm"),
        Branch("mlp", "mlp", entry="pre_feedforward_layernorm", exit="post_feedforward_layernorm"),
    ),
)
PHI = replace(
    LLAMA,
    branches=(Branch("attn", "self_attn", entry="input_layernorm"), Branch("mlp", "mlp", entry="input_layernorm")),
    linears={**_projections("self_attn", out="dense"), "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"},
    parallel=True,
)
GPT2 = BlockLayout(
    stack="h",
    branches=(
        Branch("attn", "attn", entry="ln_1"),
        Branch("cross", "crossattention", entry="ln_cross_attn"),
        Branch("mlp", "mlp", entry="ln_2"),
    ),
    linears={
        "crossattention.q_attn": "cross.q",
        "crossattention.c_attn": "cross.kv",
        "crossattention.c_proj": "cross.out",
        "attn.c_attn": "attn.qkv",
        "attn.c_proj": "attn.out",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    },
    words="wte",
)
GPT_NEOX = BlockLayout(
    stack="layers",
    branches=(
        Branch("attn", "attention", entry="input_layernorm"),
        Branch("mlp", "mlp", entry="post_attention_layernorm"),
    ),
    linears={"attention.query_key_value": "attn.qkv", "attention.dense": "attn.out", **FOUR},
    words="embed_in",
    by_head=True,
)
FALCON = BlockLayout(
    stack="h",
    branches=(
        Branch("attn", "self_attention", entry="ln_attn|input_layernorm"),
        Branch("mlp", "mlp", entry="ln_mlp|post_attention_layernorm|input_layernorm"),
    ),
    linears={"self_attention.query_key_value": "attn.qkv", "self_attention.dense": "attn.out", **FOUR},
    words="word_embeddings",
)
OPT = BlockLayout(
    stack="layers",
    branches=(
        Branch("attn", "self_attn", entry="self_attn_layer_norm"),
        Branch("mlp", "fc2", source="fc1", entry="final_layer_norm"),
    ),
    linears={**_projections("self_attn"), **PLAIN},
    words="embed_tokens",
)
BART = BlockLayout(
    stack="layers",
    branches=(
        Branch("attn", "self_attn", norm="self_attn_layer_norm"),
        Branch("cross", "encoder_attn", norm="encoder_attn_layer_norm"),
        Branch("mlp", "fc2", source="fc1", norm="final_layer_norm"),
    ),
    linears={**_projections("self_attn"), **_projections("encoder_attn", "cross"), **PLAIN},
    words="embed_tokens",
    tower="",
)
BERT = BlockLayout(
    stack="encoder.layer",
    branches=(
        Branch("attn", "attention.output.dropout", source="attention.self", norm="attention.output.LayerNorm"),
        Branch(
            "cross",
            "crossattention.output.dropout",
            source="crossattention.self",
            norm="crossattention.output.LayerNorm",
        ),
        Branch("mlp", "output.dropout", source="intermediate", norm="output.LayerNorm"),
    ),
    linears={
        **{
            f"{path}.self.{own}": f"{name}.{own[0]}"
            for path, name in (("crossattention", "cross"), ("attention", "attn"))
            for own in ("query", "key", "value", "query_proj", "key_proj", "value_proj")
        },
        "crossattention.output.dense": "cross.out",
        "attention.output.dense": "attn.out",
        "intermediate.dense": "mlp.up",
        "output.dense": "mlp.down",
    },
    words="embeddings.word_embeddings",
    tower="encoder",
)
T5 = BlockLayout(
    stack="block",
    branches=(
        Branch("attn", "layer.0.SelfAttention", entry="layer.0.layer_norm"),
        Branch("cross", "layer.1.EncDecAttention", entry="layer.1.layer_norm"),
        Branch("mlp", "layer.1.DenseReluDense", entry="layer.1.layer_norm"),
        Branch("mlp", "layer.2.DenseReluDense", entry="layer.2.layer_norm"),
    ),
    linears={
        **_projections("SelfAttention", out="o", form="{}"),
        **_projections("EncDecAttention", "cross", out="o", form="{}"),
        "DenseReluDense.wi": "mlp.up",
        "DenseReluDense.wi_0": "mlp.gate",
        "DenseReluDense.wi_1": "mlp.up",
        "DenseReluDense.wo": "mlp.down",
    },
    words="embed_tokens",
    tower="",
)
MBART = replace(
    BART,
    branches=(
        Branch("attn", "self_attn", entry="self_attn_layer_norm"),
        Branch("cross", "encoder_attn", entry="encoder_attn_layer_norm"),
        Branch("mlp", "fc2", source="fc1", entry="final_layer_norm"),
    ),
)
CLIP_VISION = BlockLayout(
    stack="encoder.layers",
    branches=(Branch("attn", "self_attn", entry="layer_norm1"), Branch("mlp", "mlp", entry="layer_norm2")),
    linears={**_projections("self_attn"), "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"},
    tower="vision",
)
QWEN_VISION = BlockLayout(
    stack="blocks",
    branches=(Branch("attn", "attn", entry="norm1"), Branch("mlp", "mlp", entry="norm2")),
    linears={"attn.qkv": "attn.qkv", "attn.proj": "attn.out", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down", **GATED},
    tower="vision",
)

FAMILIES: dict[str, tuple[BlockLayout, ...]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "mixtral", "qwen2_moe", "qwen3_moe", "smollm3"),
        (LLAMA,),
    ),
    **dict.fromkeys(("gemma2", "gemma3"), (GEMMA2,)),
    "phi": (PHI,),
    "gpt2": (GPT2,),
    "gpt_neox": (GPT_NEOX,),
    "falcon": (FALCON,),
    "opt": (OPT,),
    "bart": (BART,),
    "mbart": (MBART,),
    **dict.fromkeys(("bert", "roberta", "xlm_roberta", "electra", "deberta_v2"), (BERT,)),
    **dict.fromkeys(("t5", "mt5"), (T5,)),
    **dict.fromkeys(("clip", "siglip", "idefics3", "smolvlm"), (CLIP_VISION,)),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), (QWEN_VISION, LLAMA)),
    **dict.fromkeys(("llava", "llava_next", "paligemma"), ()),
}
"""The layouts of the towers in a family's own code; a model of several families (LLaVA) has those of its parts."""


def layouts(family: str, config: Any) -> tuple[BlockLayout, ...]:
    """Return a family's layouts as this configuration arranges its blocks; none of a family that is not known."""
    known = FAMILIES.get(family, ())
    if family == "opt" and not config.do_layer_norm_before:
        return tuple(
            replace(layout, branches=tuple(replace(b, entry="", norm=b.entry) for b in layout.branches))
            for layout in known
        )
    if family == "gpt_neox":
        return tuple(replace(layout, parallel=config.use_parallel_residual) for layout in known)
    if family == "falcon":
        grouped = config.new_decoder_architecture
        parallel, by_head = grouped or config.parallel_attn, grouped or not config.multi_query
        return tuple(replace(layout, parallel=parallel, by_head=by_head) for layout in known)
    return known
