"""Adapters in the classifier by texts: into the bare model and back, routed, mixed, copied, compiled, in bf16."""

from __future__ import annotations

import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from classifiers import CLASSES, TEMPLATES, adapt, framed, ids, images, marked, text_passes, unit, unmarked
from torch import Tensor

import mmpeft
from mmpeft.formats.manifest import Base

RESOLVED = [
    ({"method": "coop", "tokens": 4, "init": "a photo of a"}, {"ids": ids("a photo of a"), "start": 1}),
    ({"method": "coop", "tokens": 2, "class_specific": True}, {"classes": 3, "start": 1}),
    ({"method": "maple", "layers": "first:2", "init": "a photo of a"}, {"ids": ids("a photo of a")}),
    ({"method": "cocoop", "tokens": 3}, {"ids": None, "start": 1}),
    ({"method": "ivlp", "layers": "first:2", "tokens": 0}, {"start": None}),
    ({"method": "clip_lora"}, {}),
]


@pytest.mark.parametrize(("method", "known"), RESOLVED)
def test_adapters_go_from_the_classifier_into_the_bare_model_and_back(
    method: dict[str, Any], known: dict[str, Any], build: Any, tmp_path: Path
) -> None:
    model, fresh = build(), build()
    bare = fresh.backbone
    adapters = adapt(model, **method)
    adapters.save(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "mmpeft.json").read_text())
    (resolved,) = adapters.methods()
    assert manifest["methods"] == [resolved.specification()]
    assert {key: resolved.specification()[key] for key in known} == known
    assert Base.of(model) == Base.of(bare) and manifest["base"][""] == Base.of(bare).model_dump()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = mmpeft.load(bare, tmp_path / "a")
        loaded.save(tmp_path / "b")
        back = build()
        mmpeft.load(back, tmp_path / "b")
    own = adapters.state_dict()
    assert own.keys() == loaded.state_dict().keys()
    assert all(torch.equal(own[key], value) for key, value in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(back(images()), model(images()))


def test_bare_models_need_ids_for_words(make_case: Any) -> None:
    bare = make_case("lora", "open_clip").build()
    with pytest.raises(ValueError, match=r"init: 'a photo of a' needs a tokenizer, .* adapt mmpeft.zero_shot"):
        mmpeft.adapt(bare, mmpeft.CoOp(tokens=4, init="a photo of a"))
    assert "mmpeft" not in bare._modules
    adapters = mmpeft.adapt(bare, mmpeft.CoOp(tokens=2, ids=(5, 9)))
    assert torch.equal(adapters.state_dict()["text.prompt.coop.context"], bare.text.token_embedding.weight[[5, 9]])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "coop", "tokens": 3, "ids": [1, 2]}, r"ids: \[1, 2\] are 2, fewer than tokens: 3"),
        ({"method": "coop", "tokens": 2, "ids": [1, 77]}, r"ids: \[77\] beyond the 50 tokens"),
        ({"method": "coop", "tokens": 4, "init": "a photo"}, "init: 'a photo' has 2 tokens, fewer than tokens: 4"),
        ({"method": "coop", "init": "a photo of a {}."}, "is the words alone"),
        ({"method": "coop", "classes": 3}, "classes: 3 without class_specific"),
        ({"method": "coop", "class_specific": True, "classes": 6}, "classes: 6, and the model has 3"),
        ({"method": "coop", "towers": "vision"}, "no prompt site"),
        ({"method": "ivlp", "layers": "last:1"}, "layers: 'last:1': prompts enter before block 0"),
        ({"method": "maple", "layers": [1]}, r"layers: \(1,\): prompts enter before block 0"),
        ({"method": "maple"}, "layers: 'first:9' is none of .*; the tower has 2"),
        ({"method": "ivlp", "tokens": 0, "vision_tokens": 0}, "tokens: 0 and vision_tokens: 0"),
    ],
)
def test_prompts_that_can_not_work_are_named(method: dict[str, Any], message: str, build: Any) -> None:
    model = build()
    with pytest.raises(ValueError, match=message):
        mmpeft.adapt(model, method)
    assert "mmpeft" not in model._modules


@pytest.mark.parametrize("tokens", [6, 16])
def test_learned_words_that_leave_no_room_are_named(tokens: int, build: Any) -> None:
    model = build()
    mmpeft.adapt(model, mmpeft.CoOp(tokens=tokens))
    with pytest.raises(ValueError, match=r"cut off at the text tower's 9 tokens: .*learned tokens"):
        model(images())
    bare = build().backbone
    mmpeft.adapt(bare, mmpeft.CoOp(tokens=16))
    with pytest.raises(ValueError, match="tokens: 16 learned words have no place in texts of 9 tokens"):
        bare.encode_text(marked(["X"]))


@torch.no_grad()
def test_routed_samples_have_their_own_texts(build: Any) -> None:
    model = build()
    adapters = adapt(model, "coop", "words", tokens=3)
    adapt(model, "cocoop", "moved", tokens=2)
    adapt(model, "lora", "text", towers="text")
    adapt(model, "clip_adapter", "image")
    adapt(model, "tip_adapter", "cache", shots=2)
    (cache,) = adapters._edits("cache")
    cache.fill(torch.randn(6, 16), torch.arange(6) % 3)
    names = ["words", None, "moved", "text", "image", "moved", "cache", "words", None]
    batch, expected = images(len(names)), []
    for index, name in enumerate(names):
        adapters.activate(*([name] if name else []))
        expected.append(model(batch[index : index + 1])[0])
    adapters.activate("words")
    with adapters.route(names), text_passes(model) as seen:
        torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert sorted(seen) == [3, 6, 6]
    torch.testing.assert_close(model(batch[:1])[0], expected[0])


@torch.no_grad()
def test_copies_and_pickles_remember_on_their_own(build: Any) -> None:
    model = build()
    adapters = adapt(model, "coop", tokens=3)
    before = model(images())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = copy.deepcopy(model), torch.load(buffer, weights_only=False)
    adapters.parameters()[0].mul_(-2)
    moved = model(images())
    assert not torch.allclose(moved, before, atol=1e-3)
    for twin in twins:
        assert twin.joint.model is twin.backbone and torch.equal(twin(images()), before)
        mmpeft.adapters(twin).parameters()[0].mul_(-2)
        torch.testing.assert_close(twin(images()), moved)


@torch.no_grad()
def test_contexts_mix_by_weight(build: Any) -> None:
    model = build()
    adapters = adapt(model, "coop", "a", 1, tokens=3)
    adapt(model, "coop", "b", 2, tokens=3)
    adapt(model, "coop", "mean", tokens=3)
    (mean,), (a,), (b,) = (adapters.state_dict(name).values() for name in ("mean", "a", "b"))
    mean.copy_(0.3 * a + 0.7 * b)
    expected = model(images())
    adapters.activate("a", "b", weights=[0.3, 0.7])
    torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-5)


def test_adapters_with_different_texts_do_not_mix(build: Any) -> None:
    model = build()
    adapters = adapt(model, "coop", "three", tokens=3)
    adapt(model, "coop", "two", tokens=2)
    adapters.activate("three", "two")
    with pytest.raises(ValueError, match=r"replace words of different texts: \['X X X \{\}.', 'X X \{\}.'\]"):
        model(images())


@pytest.mark.parametrize(("name", "tokenizer"), [("hf_clip", marked), ("siglip", unmarked)])
@torch.no_grad()
def test_models_of_transformers_classify_too(name: str, tokenizer: Any, build: Any) -> None:
    model = build(name, tokenizer=tokenizer)
    bare = model.backbone
    texts = [template.replace("{}", word) for template in TEMPLATES for word in CLASSES]
    output = bare(input_ids=tokenizer(texts), pixel_values=images())
    weight = unit(unit(output.text_embeds).unflatten(0, (2, 3)).mean(0))
    torch.testing.assert_close(
        model(images()), bare.logit_scale.exp() * unit(output.image_embeds) @ weight.T, rtol=1e-4, atol=1e-5
    )
    adapters = adapt(model, "coop", tokens=3)
    context = adapters.parameters()[0]
    seen: list[Tensor] = []
    hook = bare.text_model.embeddings.token_embedding.register_forward_hook(lambda *args: seen.append(args[2]))
    model(images())
    hook.remove()
    start = 1 if name == "hf_clip" else 0
    assert torch.equal(seen[0][:, start : start + 3], context.expand(3, -1, -1))


@pytest.mark.parametrize("position", ["middle", "front"])
def test_only_texts_with_a_marked_end_have_words_behind_the_class(position: str, build: Any) -> None:
    mmpeft.adapt(build(), {"method": "coop", "tokens": 3, "position": position})
    with pytest.raises(ValueError, match=f"position: '{position}' needs texts with a marked end"):
        mmpeft.adapt(build("siglip", tokenizer=unmarked), {"method": "coop", "tokens": 3, "position": position})


@pytest.mark.parametrize(
    ("pool", "tokenizer", "start"),
    [("last", unmarked, 0), ("last", framed, 1), ("eos", unmarked, 0), ("eos", marked, 1)],
)
@torch.no_grad()
def test_the_tokenizer_says_where_words_begin(
    pool: str, tokenizer: Any, start: int, build: Any, tmp_path: Path
) -> None:
    own = {"pool_type": pool, "eos_id": 49 if tokenizer is marked else 1, "attn_mask": None}
    model, bare = build(tokenizer=tokenizer, **own), build(tokenizer=tokenizer, **own).backbone
    adapters = adapt(model, "coop", tokens=3)
    adapters.save(tmp_path)
    mmpeft.load(bare, tmp_path)
    texts = tokenizer(["X X X disc."])
    for backbone in (model.backbone, bare):
        seen: list[Tensor] = []
        backbone.text.token_embedding.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        backbone.encode_text(texts)
        assert torch.equal(seen[0][0, start : start + 3], adapters.parameters()[0])
        plain = F.embedding(texts, backbone.text.token_embedding.weight)[0]
        assert torch.equal(seen[0][0, :start], plain[:start]) and torch.equal(
            seen[0][0, start + 3 :], plain[start + 3 :]
        )


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("coop", {"tokens": 3, "position": "middle"}),
    ("cocoop", {"tokens": 3}),
    ("maple", {"layers": "first:2"}),
    ("ivlp", {"layers": "first:2"}),
    ("clip_adapter", {}),
]


@pytest.mark.parametrize(("method", "options"), METHODS)
@torch.no_grad()
def test_it_compiles_before_its_texts_are_known(method: str, options: dict[str, Any], build: Any) -> None:
    model = build()
    adapt(model, method, **options)
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_it_trains_in_bf16_and_checkpointed(method: str, options: dict[str, Any], build: Any) -> None:
    model = build().train()
    adapters = adapt(model, method, **options)
    expected = torch.autograd.grad(model(images()).square().sum(), adapters.parameters())
    model.backbone.set_grad_checkpointing()
    found = torch.autograd.grad(model(images()).square().sum(), adapters.parameters())
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)
    half = build().to(torch.bfloat16).train()
    adapters = adapt(half, method, **options)
    logits = half(images().bfloat16())
    logits.float().square().sum().backward()
    adapters.check_gradients()
    assert logits.dtype == torch.bfloat16 and {p.dtype for p in adapters.parameters()} == {torch.float32}
    exact = model(images()).detach()
    torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())


def test_an_adapter_made_in_inference_mode_classifies(build: Any) -> None:
    model = build()
    with torch.inference_mode():
        mmpeft.adapt(model, mmpeft.CoOp(tokens=3))
        assert torch.equal(model(images()), model(images()))
