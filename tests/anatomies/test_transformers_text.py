"""Language models of transformers: towers, blocks and sites of real configurations, and where edits take effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from language_configurations import CONFIGURATIONS, build
from torch import Tensor, nn

import mmpeft
from mmpeft.anatomies.sites import BranchSite, LinearSite, ParametersSite, WordsSite

ENCODER_DECODER = {"T5-small", "T5-base", "Flan-T5-base", "BART-base", "BART-large"}
SEEING = {"LLaVA-1.5-7B", "Qwen2-VL-2B", "Qwen2.5-VL-3B", "SmolVLM-256M"}
ENCODERS = {"BERT-base", "BERT-large", "RoBERTa-base", "XLM-RoBERTa-base", "DeBERTa-v3-base"}
PARALLEL = {"Phi-2", "Pythia-160M", "Pythia-1.4B", "Falcon-7B", "Falcon-40B"}
ROUTED = {"Mixtral-8x7B", "Qwen1.5-MoE"}
CROSS = {"cross", "cross.q", "cross.k", "cross.v", "cross.out"}
ROOMS = {"attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down", "attn", "mlp", "block", "norm"}


def towers_of(name: str) -> list[str]:
    if name in ENCODER_DECODER:
        return ["encoder", "decoder"]
    return ["vision", "projector", "decoder"] if name in SEEING else ["encoder" if name in ENCODERS else "decoder"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_real_configurations_have_their_towers_and_every_block_its_sites(name: str) -> None:
    model = build(name)
    assert sum(p.numel() for p in model.parameters()) == CONFIGURATIONS[name][2]
    sketch = mmpeft.anatomy(model)
    assert sketch.library == "transformers" and sketch.tower_names() == towers_of(name)
    for tower in (tower for tower in sketch.towers if tower.name != "projector"):
        needed = ROOMS - ({"mlp.up", "mlp.down"} if name in ROUTED else set())
        needed |= CROSS if name in ENCODER_DECODER and tower.name == "decoder" else set()
        for block in tower.blocks:
            assert needed <= {site.name for site in block.sites}
        assert tower.width == tower.blocks[0].sites[0].width  # type: ignore[attr-defined]
    branches = [site for site in sketch.sites(BranchSite) if isinstance(site, BranchSite) and site.name != "block"]
    assert all(site.entry is not None and site.exit is not None for site in branches)
    assert {site.parallel for site in branches} == {name in PARALLEL}
    paths = [site.path for site in sketch.sites()]
    assert sorted({path for path in paths if paths.count(path) > 1} - {"features"}) == []
    words = [site for site in sketch.sites(WordsSite) if isinstance(site, WordsSite)]
    assert [site.tower for site in words] == [tower for tower in towers_of(name) if tower in ("encoder", "decoder")]
    linear = [site for site in sketch.sites(LinearSite) if isinstance(site, LinearSite)]
    assert {type(site.host).__name__ for site in linear} <= {"Linear", "Conv1D", "FalconLinear"}


SIZE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
HIDDEN = {**SIZE, "intermediate_size": 64}
GROUPED = {**HIDDEN, "num_key_value_heads": 2}
OPT = {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32}
STILL = {"dropout": 0.0, "attention_dropout": 0.0}
SIDES = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
         {"layers": 2, "attention_heads": 4, "ffn_dim": 64}.items()}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 8}),
    "phi": ("PhiForCausalLM", HIDDEN),
    "phi3": ("Phi3ForCausalLM", {**GROUPED, "pad_token_id": 0}),
    "neox_in_turn": ("GPTNeoXForCausalLM", {**HIDDEN, "use_parallel_residual": False}),
    "opt": ("OPTForCausalLM", OPT),
    "opt_350m": ("OPTForCausalLM", {**OPT, "do_layer_norm_before": False}),
    "falcon_7b": ("FalconForCausalLM", SIZE),
    "falcon_40b": ("FalconForCausalLM", {**SIZE, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon_rw": ("FalconForCausalLM", {**SIZE, "multi_query": False, "parallel_attn": False, "alibi": True}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**GROUPED, "num_experts": 4, "moe_intermediate_size": 16,
                                          "shared_expert_intermediate_size": 16}),
    "deberta": ("DebertaV2Model", HIDDEN),
    "bart": ("BartForConditionalGeneration", {"vocab_size": 50, "d_model": 32, **SIDES}),
    "mbart": ("MBartForConditionalGeneration", {"vocab_size": 50, "d_model": 32, **SIDES}),
}  # fmt: skip
"""Small models of the structures that the matrix has not."""
MATRIX = ("llama", "gpt2", "gpt_neox", "mixtral", "bert", "t5")


@pytest.fixture(params=[*MATRIX, *FAMILIES])
def small(request: pytest.FixtureRequest, make_case: Any) -> Any:
    """A small model in eval mode, none of whose parameters is at its start."""
    if request.param in MATRIX:
        return make_case("lora", request.param).build()
    kind, options = FAMILIES[request.param]
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model = cls(cls.config_class(**options)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def run(model: Any) -> Any:
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **more)[0]


def watched(model: Any, modules: list[nn.Module]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the first input and output of each module in one pass."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        first = args[0] if args else kwargs["hidden_states"]
        result = output[0] if isinstance(output, tuple) else output
        seen[id(module)] = first.detach().clone(), result.detach().clone()

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_branches_are_what_the_residual_stream_is_made_of(small: Any) -> None:
    """x enters a branch, y leaves it: x + y goes on (through a norm, where it comes behind), or all of them at once."""
    for tower in mmpeft.anatomy(small).towers:
        for block in tower.blocks:
            sites = [site for site in block.sites if isinstance(site, BranchSite)]
            (whole,) = [site for site in sites if site.name == "block"]
            branches = [site for site in sites if site.name != "block"]
            ends = [end for site in branches for end in (site.entry, site.exit, site.source or site.host)]
            seen = watched(small, [end for end in ends if end is not None] + [whole.host])
            entered = [seen[id(site.entry)][0].reshape(2, 7, 32) for site in branches]
            added = [seen[id(site.exit)][1].reshape(2, 7, 32) for site in branches]
            x, y = seen[id(whole.host)]
            torch.testing.assert_close(entered[0], x)
            if branches[0].parallel:
                assert all(torch.equal(own, x) for own in entered)
                torch.testing.assert_close(x + sum(added), y)
                continue
            for stream, change, after in zip(entered, added, [*entered[1:], y], strict=True):
                behind = stream + change
                norms = [n for site in block.sites if site.kind == "norm" for n in [site.host]]
                found = [behind, *(norm(behind) for norm in norms if norm.weight.numel() == 32)]
                assert any(torch.allclose(one, after, 1e-4, 1e-5) for one in found)


def test_queries_keys_and_values_are_the_rows_that_their_names_say(small: Any) -> None:
    """Without values nothing comes out of an attention; without queries, keys change nothing."""
    by_name: dict[str, list[LinearSite]] = {}
    for site in mmpeft.anatomy(small).sites(LinearSite, towers="all"):
        by_name.setdefault(site.name, []).append(site)
    kinds = [kind for kind in ("attn", "cross") if f"{kind}.q" in by_name]
    out = [site.host for kind in kinds for site in by_name[f"{kind}.out"]]
    adapters = mmpeft.adapt(small, mmpeft.IA3(targets=[f"{kind}.v" for kind in kinds], feedforward=()))
    for parameter in adapters.parameters():
        parameter.data.zero_()
    seen = watched(small, out)
    assert all(not seen[id(host)][0].any() for host in out)
    adapters.remove()
    if small.config.model_type == "deberta-v2":
        return
    adapters = mmpeft.adapt(small, mmpeft.IA3(targets=[f"{kind}.q" for kind in kinds], feedforward=()), name="q")
    for parameter in adapters.parameters():
        parameter.data.zero_()
    expected = run(small)
    mmpeft.adapt(small, mmpeft.IA3(targets=[f"{kind}.k" for kind in kinds], feedforward=()), name="k")
    for parameter in adapters.parameters("k"):
        parameter.data.fill_(2.0)
    assert not torch.allclose(run(small), expected)
    adapters.activate("q", "k")
    torch.testing.assert_close(run(small), expected)


def test_blocks_behind_the_features_that_are_read_are_no_place_to_adapt() -> None:
    """LLaVA-1.5 takes an image's features in front of the last of CLIP's 24 blocks."""
    sketch = mmpeft.anatomy(build("LLaVA-1.5-7B"))
    assert [len(tower.blocks) for tower in sketch.towers] == [23, 0, 32]
    assert not [site for site in sketch.sites() if ".layers.23." in site.path and site.tower == "vision"]


def test_routed_experts_are_left_out_with_a_reason_and_the_branch_takes_adapters(make_case: Any) -> None:
    model = make_case("lora", "mixtral").build()
    reason = "experts' weights are one 3-D parameter of all experts, which no linear layer holds"
    with pytest.raises(ValueError, match=reason):
        mmpeft.adapt(model, mmpeft.LoRA(targets="mlp.up"))
    mmpeft.adapt(model, mmpeft.ParallelAdapter(bottleneck=4))
    assert mmpeft.adapters(model).report().trainable == 2 * (2 * 32 * 4 + 32 + 4)


def test_the_head_and_what_enters_it_are_sites() -> None:
    kinds = {
        "BertForSequenceClassification": "classifier",
        "BertForQuestionAnswering": "qa_outputs",
        "BertForTokenClassification": "classifier",
        "RobertaForSequenceClassification": "classifier.dense",
        "BertForMaskedLM": "cls.predictions",
    }
    for kind, path in kinds.items():
        cls = getattr(transformers, kind)
        sketch = mmpeft.anatomy(cls(cls.config_class(**HIDDEN)))
        heads = [site for site in sketch.sites(ParametersSite) if site.name == "head"]
        assert heads[0].host_path.startswith(path)
        assert [site.width for site in sketch.sites() if site.name == "features"] == [32]  # type: ignore[attr-defined]
    adapters = mmpeft.adapt(
        transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**HIDDEN)), "linear_probe"
    )
    assert adapters.report().trainable == 2 * 32


def test_a_tied_head_is_trained_alone_and_not_merged(make_case: Any) -> None:
    model = make_case("lora", "gpt2").build()
    adapters = mmpeft.adapt(model, "linear_probe")
    assert [key for key, _ in adapters.named_parameters()] == ["main.lm_head.linear_probe.weight"]
    with pytest.raises(ValueError, match="lm_head: the base uses this weight in another place too"):
        adapters.merge()


def test_towers_own_what_is_theirs(make_case: Any) -> None:
    model = make_case("lora", "t5").build()
    both = mmpeft.adapt(model, "full_fine_tuning").report()
    assert both.trainable == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    encoder = mmpeft.adapt(model, mmpeft.LoRA(rank=1, towers="encoder"), name="encoder")
    assert {key.split(".")[1] for key, _ in encoder.named_parameters()} == {"encoder"}
    with pytest.raises(ValueError, match="has no tower 'decodr'"):
        mmpeft.adapt(model, mmpeft.LoRA(towers="decodr"), name="wrong")
