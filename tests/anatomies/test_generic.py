"""The map of a model that no reader knows: its linear and norm layers, in blocks where it has a stack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mmpeft


def test_a_family_without_a_layout_is_mapped_by_the_names_of_its_layers() -> None:
    from transformers import ErnieConfig, ErnieModel

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sketch = mmpeft.anatomy(ErnieModel(ErnieConfig(vocab_size=50, **size)))
    assert sketch.library == "generic" and len(sketch.towers[0].blocks) == 2
    first = {site.name: site.path for site in sketch.towers[0].blocks[0].sites}
    assert first["attn.q"] == "encoder.layer.0.attention.self.query"
    assert first["attn.out"] == "encoder.layer.0.attention.output.dense"
    assert "intermediate.dense" in first and "output.dense" in first
    outer = {site.path for site in sketch.towers[0].sites}
    assert outer == {"embeddings.LayerNorm", "embeddings.position_embeddings", "pooler.dense"}


def places(adapters: Any) -> list[str]:
    return [site.path for part in adapters.parts().values() for site, _, _ in part.places]


def test_a_default_that_does_not_fit_is_an_error_that_says_which_targets_there_are() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"no linear site 'attn.q' or 'attn.v'.*name targets. There are 0, 2"):
        mmpeft.adapt(model, mmpeft.LoRA(rank=1))
    assert places(mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets="all"))) == ["0", "2"]
    with pytest.raises(ValueError, match=r"Sequential \(generic\) has no linear site 'attn.q'"):
        mmpeft.adapt(model, mmpeft.LoRA(targets="attn.q"), name="b")


def test_what_has_no_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"methods: no site for lora in Sequential\. There are 0"):
        mmpeft.adapt(model, mmpeft.LoRA(targets="all"))
    with pytest.raises(ValueError, match=r"'bitfit' trains biases, and ReLU .* has none"):
        mmpeft.adapt(nn.ReLU(), "bitfit")


def test_a_fused_projection_of_unknown_order_makes_the_default_an_error() -> None:
    import timm

    with torch.device("meta"):
        models = [timm.create_model(name) for name in ("pvt_v2_b0", "twins_svt_small", "convit_tiny")]
    for model in models:
        with pytest.raises(ValueError, match=r"name targets. There are .*attn\.(kv|qkv|qk)\b"):
            mmpeft.adapt(model, mmpeft.LoRA(rank=2))


def test_the_parts_of_torch_attention_are_sites_in_any_model() -> None:
    names = [site.name for site in mmpeft.anatomy(nn.MultiheadAttention(8, 2)).sites()]
    assert names == ["attn.qkv", "attn.q", "attn.k", "attn.v", "attn.out"]
    with pytest.raises(ValueError, match="another kdim or vdim can't carry edits"):
        model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, kdim=4)})
        mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("a",)))


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    both = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    sizes = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in both.items()}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    lengths = {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 64}
    with torch.device("meta"):
        return WhisperForConditionalGeneration(WhisperConfig(vocab_size=64, d_model=32, **sizes, **ids, **lengths))


def test_every_stack_of_a_model_is_a_tower_with_layers_of_its_own() -> None:
    model = whisper()
    sketch = mmpeft.anatomy(model)
    assert [(tower.name, len(tower.blocks)) for tower in sketch.towers] == [("encoder", 2), ("decoder", 2)]
    assert sum(site.name == "cross.kernel" for site in sketch.sites()) == 2
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=1, towers="decoder", layers="last:1"))
    assert sorted(places(adapters)) == [f"model.decoder.layers.1.self_attn.{part}_proj" for part in "qv"]
    everywhere = places(mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=2, hidden=None), name="prefix"))
    assert sorted({path.split(".")[1] for path in everywhere}) == ["decoder", "encoder"]


def test_eyes_that_a_reader_does_not_know_are_a_tower_of_their_own() -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, PixtralVisionConfig

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = MistralConfig(vocab_size=60, num_key_value_heads=2, head_dim=16, **size)
    eyes = PixtralVisionConfig(image_size=16, patch_size=8, head_dim=16, **size)  # type: ignore[call-arg]
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=eyes, text_config=text, vision_feature_layer=-1)
        )
    sketch = mmpeft.anatomy(model)
    assert sketch.tower_names() == ["vision", "projector", "decoder"]
    assert all("language_model" in path for path in places(mmpeft.adapt(model, mmpeft.LoRA(rank=1, towers="decoder"))))


def heads() -> dict[str, Any]:
    import transformers as t

    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": 32, "patch_size": 8, "num_labels": 5}
    text = {"vocab_size": 50, "num_labels": 5, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    text |= {"intermediate_size": 64, "pad_token_id": 0}
    small = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    clip = {"text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}}
    return {
        "classifier": t.ViTForImageClassification(t.ViTConfig(**vision)),
        "classifier ": t.Dinov2ForImageClassification(t.Dinov2Config(**vision)),
        "classifier  ": t.CLIPForImageClassification(t.CLIPConfig(vision_config=vision, num_labels=5, **clip)),  # type: ignore[call-arg]
        "pre_classifier classifier": t.DistilBertForSequenceClassification(
            t.DistilBertConfig(vocab_size=50, num_labels=5, **small)  # type: ignore[call-arg]
        ),
        "head.dense head.norm classifier": t.ModernBertForSequenceClassification(t.ModernBertConfig(**text)),
        "classifier   ": t.AlbertForSequenceClassification(t.AlbertConfig(embedding_size=16, **text)),
        "lm_head": t.Olmo2ForCausalLM(t.Olmo2Config(**text)),
    }


def test_the_heads_of_transformers_are_head_sites_and_no_linear_ones() -> None:
    for names, model in heads().items():
        sketch = mmpeft.anatomy(model)
        assert [site.path for site in sketch.sites() if site.name == "head"] == names.split(), type(model).__name__
        adapters = mmpeft.adapt(model, [mmpeft.LoRA(rank=1, targets="all"), mmpeft.LinearProbe()])
        assert not {*names.split()} & {
            site.path for part in adapters.parts().values() for site, edit, _ in part.places if hasattr(edit, "lora_A")
        }


def test_a_weight_that_two_modules_share_is_marked() -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})
    model["b"].weight = model["a"].weight
    assert {site.path: site.shared for site in mmpeft.anatomy(model).sites()} == {"a": True, "b": True, "c": False}
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("a",)))
    with pytest.raises(ValueError, match="a: the base uses this weight in another place too"):
        adapters.merge()


def test_adapters_inside_a_part_are_no_sites_of_the_whole(make_case: Any) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = make_case("adaptformer", "vit").build()
            self.classify = nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classify(self.backbone(x))

    model = Whole()
    before = [site.path for site in mmpeft.anatomy(model).sites()]
    mmpeft.adapt(model.backbone, "adaptformer")
    assert [site.path for site in mmpeft.anatomy(model).sites()] == before
    keys = {key for key in model.state_dict() if "mmpeft" not in key}
    model.load_state_dict({key: value for key, value in model.state_dict().items() if key in keys}, strict=True)


def test_what_is_no_module_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="model: dict is no torch module; a pipeline has an anatomy for each"):
        mmpeft.anatomy({"unet": nn.Linear(2, 2)})


def test_layers_of_experts_make_a_target_of_some_blocks_an_error_unless_layers_are_named() -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8}
    heads |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(DeepseekV3Config(n_group=1, topk_group=1, **size, **heads, **experts))
    with pytest.raises(ValueError, match=r"'mlp.up' is in 1 of the 2 blocks of tower 'model' only .*layers: \[0\]"):
        mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("mlp.up",)))
    first = mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("mlp.up",), layers=[0]), name="first")
    assert places(first) == ["model.layers.0.mlp.up_proj"]
    shared = mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("mlp.shared.up",)), name="shared")
    assert [path for path in places(shared) if "shared" in path] == ["model.layers.1.mlp.shared_experts.up_proj"]
