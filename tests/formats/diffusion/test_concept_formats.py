"""Custom Diffusion and new words in the files of diffusers, of their authors and of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_diffusion import denoise, make_pipeline, make_text_encoder, make_unet
from torch import Tensor

import mmpeft
from mmpeft.formats import convert, export
from mmpeft.formats.diffusion.custom_diffusion_merge import compress

CONCEPT: list[dict[str, Any]] = [
    {"method": "custom_diffusion"},
    {"method": "textual_inversion", "words": ["<new1>"]},
]
PROMPT = "a <new1> b"


@torch.no_grad()
def outputs(pipeline: Any, large: bool = False, prompt: str = PROMPT) -> list[Tensor]:
    """What the text encoders make of a prompt, and the UNet of the first one's states."""
    states = []
    for end in ("", "_2") if large else ("",):
        prompt = pipeline.maybe_convert_prompt(prompt, getattr(pipeline, f"tokenizer{end}"))
        tokens = getattr(pipeline, f"tokenizer{end}")([prompt] * 2, return_tensors="pt")["input_ids"]
        states.append(getattr(pipeline, f"text_encoder{end}")(tokens).last_hidden_state)
    return [denoise(pipeline.unet, large, encoder_hidden_states=states[0]), *states]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)


def saved(tmp_path: Path, shaken: Any, methods: Any, large: bool = False) -> list[Tensor]:
    """Write an adapter to ``ours``, and return what it computes."""
    pipeline = make_pipeline(tmp_path, large)
    adapters = mmpeft.adapt(pipeline, methods)
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    found = outputs(pipeline, large)
    with adapters.off():
        plain = outputs(pipeline, large, "a b b")
    assert (found[0] - plain[0]).abs().max() > 1e-3
    return found


def loaded(tmp_path: Path, large: bool = False) -> list[Tensor]:
    pipeline = make_pipeline(tmp_path, large)
    mmpeft.load(pipeline, tmp_path / "back")
    return outputs(pipeline, large)


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
def test_a_concept_comes_back_into_a_fresh_pipeline(tmp_path: Path, shaken: Any, large: bool) -> None:
    """Our own directory: each method where its sites are, the words in the tokenizers."""
    expected = saved(tmp_path, shaken, CONCEPT, large)
    pipeline = make_pipeline(tmp_path, large)
    mmpeft.load(pipeline, tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(outputs(pipeline, large), expected, strict=True))


@pytest.mark.parametrize("queries", [False, True])
def test_diffusers_loads_custom_diffusion_and_we_load_it_back(tmp_path: Path, shaken: Any, queries: bool) -> None:
    expected = saved(tmp_path, shaken, [CONCEPT[0] | {"queries": queries}, CONCEPT[1]])
    export(tmp_path / "ours", tmp_path / "cd", "custom_diffusion", base=make_pipeline(tmp_path))
    pipeline = make_pipeline(tmp_path)
    name = "pytorch_custom_diffusion_weights"
    pipeline.unet.load_attn_procs(str(tmp_path / "cd"), weight_name=f"{name}.bin", _pipeline=pipeline)
    pipeline.load_textual_inversion(str(tmp_path / "cd"), weight_name="<new1>.safetensors")
    same(outputs(pipeline), expected)
    tensors = load_file(tmp_path / "cd" / f"{name}.safetensors")
    assert len(tensors) == (4 * 5 if queries else 4 * 2)
    for kept in (".safetensors", ".bin"):
        convert(tmp_path / "cd", tmp_path / "back", "custom_diffusion", base=make_pipeline(tmp_path))
        assert all(torch.equal(a, b) for a, b in zip(loaded(tmp_path), expected, strict=True)), kept
        (tmp_path / "cd" / f"{name}.safetensors").unlink(missing_ok=True)


def test_what_diffusers_saved_is_read(tmp_path: Path, shaken: Any) -> None:
    """By ``save_attn_procs`` of diffusers' own processors."""
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

    unet = make_unet()
    processors = {}
    for path in unet.attn_processors:
        layer = unet.get_submodule(path.removesuffix(".processor"))
        cross = path.endswith("attn2.processor")
        own = CustomDiffusionAttnProcessor(cross, False, layer.to_q.out_features, layer.to_k.in_features)
        if cross:
            own.load_state_dict(
                {f"to_{n}_custom_diffusion.weight": getattr(layer, f"to_{n}").weight.detach() for n in "kv"}
            )
        processors[path] = own
    unet.set_attn_processor(processors)
    shaken([p for own in processors.values() for p in own.parameters()])
    expected = denoise(unet)
    for safe in (True, False):
        unet.save_attn_procs(tmp_path / f"cd{safe}", safe_serialization=safe)
        base = make_unet()
        convert(tmp_path / f"cd{safe}", tmp_path / "back", "custom_diffusion", base=base)
        mmpeft.load(base, tmp_path / "back")
        same([denoise(base)], [expected])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
def test_the_authors_delta(tmp_path: Path, compressed: bool, large: bool) -> None:
    """Whole weights, or u and v of what was learned; the words' vectors, in SDXL a list of two."""
    torch.manual_seed(0)
    base = make_pipeline(tmp_path, large)
    weights, unet = dict(base.unet.named_parameters()), make_unet(large)
    delta: dict[str, Any] = {}
    for name, weight in weights.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            u, v = compress(torch.randn(len(weight), 3) @ torch.randn(3, 24) * 0.1, 0.999)
            delta[name] = {"u": u, "v": v} if compressed else (weight + u @ v).detach()
            unet.get_parameter(name).data += u @ v
    words = [torch.randn(24), torch.randn(20)] if large else torch.randn(24)
    torch.save({"unet": delta, "modifier_token": {"<new1>": words}, "text_encoder": {}}, tmp_path / "delta.bin")
    notes = convert(tmp_path / "delta.bin", tmp_path / "back", "custom_diffusion", base=base)
    assert "words: <new1>" in notes
    mmpeft.load(base, tmp_path / "back")
    same([denoise(base.unet, large)], [denoise(unet, large)])
    ids = torch.tensor([base.tokenizer.convert_tokens_to_ids(["<new1>"])])
    vector = words[0] if large else words
    assert torch.equal(base.text_encoder.get_input_embeddings()(ids)[0, 0], vector)


KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("bent", "problem"),
    [
        ({"modifier_token": [1]}, "modifier_token: \\[1\\], expected words"),
        ({"modifier_token": {"<a>": "x"}}, "str, where the vectors of a word are expected"),
        ({"unet": 3}, "no 2-dimensional tensor is named like"),
        ({"unet": {KEY: {"u": torch.ones(3, 2), "v": torch.ones(2, 3)}}}, "its u and v are no factors"),
        ({"unet": {KEY: {"u": torch.ones(3, 2), "v": 4}}}, "its u and v are no factors"),
        ({"unet": {KEY: {"u": torch.ones(3, 2)}}}, "no 2-dimensional tensor is named like"),
    ],
)
def test_a_bent_delta_is_one_error(tmp_path: Path, bent: dict[str, Any], problem: str) -> None:
    torch.save({"unet": {}, "modifier_token": {}} | bent, tmp_path / "delta.bin")
    with pytest.raises(ValueError, match=rf"delta\.bin(.|\n)*{problem}"):
        convert(tmp_path / "delta.bin", tmp_path / "back", "custom_diffusion", base=make_unet())


@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_loads_new_words_and_we_load_them_back(tmp_path: Path, shaken: Any, vectors: int) -> None:
    pipeline = make_pipeline(tmp_path)
    adapters = mmpeft.adapt(pipeline, {"method": "textual_inversion", "words": ["<new1>"], "vectors": vectors})
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    expected = outputs(pipeline)
    export(tmp_path / "ours", tmp_path / "ti", "textual_inversion", base=make_pipeline(tmp_path))
    theirs = make_pipeline(tmp_path)
    theirs.load_textual_inversion(str(tmp_path / "ti"))
    same(outputs(theirs), expected)
    convert(tmp_path / "ti", tmp_path / "back", "textual_inversion", base=make_pipeline(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(loaded(tmp_path), expected, strict=True))


def test_words_of_two_encoders_lie_in_one_file(tmp_path: Path, shaken: Any) -> None:
    method = {"method": "textual_inversion", "words": ["<new1>"], "vectors": 2}
    expected = saved(tmp_path, shaken, [{"method": "custom_diffusion"}, method], True)[1:]
    pipeline = make_pipeline(tmp_path, True)
    mmpeft.load(pipeline, tmp_path / "ours")
    alone = make_pipeline(tmp_path, True)
    adapters = mmpeft.adapt(alone, method)
    vectors = {k: v for k, v in mmpeft.adapters(pipeline).state_dict().items() if "textual_inversion" in k}
    adapters.load_state_dict(vectors)
    adapters.save(tmp_path / "words")
    export(tmp_path / "words", tmp_path / "ti", "textual_inversion", base=make_pipeline(tmp_path, True))
    file = tmp_path / "ti" / "<new1>.safetensors"
    assert {key: tuple(v.shape) for key, v in load_file(file).items()} == {"clip_l": (2, 24), "clip_g": (2, 20)}
    theirs = make_pipeline(tmp_path, True)
    for end, key in (("", "clip_l"), ("_2", "clip_g")):
        own = {"tokenizer": getattr(theirs, f"tokenizer{end}"), "text_encoder": getattr(theirs, f"text_encoder{end}")}
        theirs.load_textual_inversion({"<new1>": load_file(file)[key]}, token="<new1>", **own)
    same(outputs(theirs, True)[1:], expected)
    convert(file, tmp_path / "back", "textual_inversion", base=make_pipeline(tmp_path, True))
    same(loaded(tmp_path, True)[1:], expected)


FILES: dict[str, Any] = {
    "a1111.pt": lambda v: {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "<new1>", "step": 9},
    "<new1>.safetensors": lambda v: {"emb_params": v},
    "learned_embeds.bin": lambda v: {"<new1>": v[0]},
}


@pytest.mark.parametrize("name", FILES)
def test_words_of_other_tools(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(1, 24)
    write = save_file if name.endswith(".safetensors") else torch.save
    write(FILES[name](vectors), tmp_path / name)
    base = make_pipeline(tmp_path)
    assert "the word is <new1>" in convert(tmp_path / name, tmp_path / "back", "textual_inversion", base=base)
    mmpeft.load(base, tmp_path / "back")
    ids = torch.tensor([base.tokenizer.convert_tokens_to_ids(["<new1>"])])
    assert torch.equal(base.text_encoder.get_input_embeddings()(ids)[0], vectors)


def test_one_key_for_two_encoders_goes_to_the_one_of_its_width(tmp_path: Path) -> None:
    save_file({"<a>": torch.randn(2, 20)}, tmp_path / "learned_embeds.safetensors")
    base = make_pipeline(tmp_path, True)
    convert(tmp_path, tmp_path / "back", "textual_inversion", base=base, word="<b>")
    mmpeft.load(base, tmp_path / "back")
    assert "<b>" in base.tokenizer_2.get_vocab()
    assert "<b>" not in base.tokenizer.get_vocab()


def test_words_that_fit_no_encoder_are_refused(tmp_path: Path) -> None:
    save_file({"<a>": torch.randn(1, 768)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"vectors of \[768\] .* the model has text_encoder 24"):
        convert(tmp_path / "a.safetensors", tmp_path / "back", "textual_inversion", base=make_pipeline(tmp_path))
    save_file({"<a>": torch.randn(1, 24)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="need a tokenizer"):
        convert(tmp_path / "b.safetensors", tmp_path / "back", "textual_inversion", base=make_text_encoder())


def test_a_word_is_no_path(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path)
    methods = {"method": "textual_inversion", "words": ["../a", "<b>"]}
    mmpeft.adapt(pipeline, methods).save(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"'\.\./a' can't be the name of a file"):
        export(tmp_path / "ours", tmp_path / "ti", "textual_inversion", base=make_pipeline(tmp_path))
