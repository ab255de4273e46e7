"""Point 4 of the matrix for two-tower models: each formula, derived again from its paper on a CLIP of functions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functional_clip import CLASSES, DEPTH, END, MODELS, START, Plain, canonical, ids, tokenize
from test_formulas import FORMULAS as ONE_TOWER
from torch import Tensor
from unified_formulas import ELSEWHERE

import mmpeft
from mmpeft.heads.zero_shot import ZeroShotClassifier


class Words(Plain):
    """[SOS][v_1 .. v_M][class][.][EOT]: what CoOp and the rest write in the place of a text's words."""

    kept = ""

    def classes(self, v: Tensor) -> Tensor:
        texts = [self.sentence(index, name) for index, name in enumerate(CLASSES)]
        return self.unit(self.text(*self.assembled(texts))).expand(len(v), -1, -1)

    def sentence(self, index: int, name: str) -> Tensor:
        return self.framed(self.context(index), self.rows(ids(self.kept)), self.rows(ids(name)))

    def framed(self, *parts: Tensor) -> Tensor:
        return torch.cat([self.rows([START]), *parts, self.rows(ids(".")), self.rows([END])])

    def rows(self, tokens: list[int]) -> Tensor:
        return self.p["text.words"][tokens]

    def context(self, index: int) -> Tensor:
        return self.a("context")


class Middle(Words):
    """[SOS][the first floor(M / 2)][class][the others][.][EOT]."""

    def sentence(self, index: int, name: str) -> Tensor:
        context = self.context(index)
        half = len(context) // 2
        return self.framed(context[:half], self.rows(ids(name)), context[half:])


class Front(Words):
    """[SOS][class][v_1 .. v_M][.][EOT]."""

    def sentence(self, index: int, name: str) -> Tensor:
        return self.framed(self.rows(ids(name)), self.context(index))


class OfEachClass(Words):
    """Vectors (classes, M, width)."""

    def context(self, index: int) -> Tensor:
        return self.a("context")[index]


class MiddleOfEachClass(Middle, OfEachClass):
    pass


class Conditional(Words):
    """v_m + W_2 relu(W_1 f + b_1) + b_2, f the image's normalised features: each image has texts of its own."""

    def classes(self, v: Tensor) -> Tensor:
        return torch.cat([self.seeing(image) for image in v])

    def seeing(self, image: Tensor) -> Tensor:
        hidden = (self.a("meta.0.weight") @ image + self.a("meta.0.bias")).clamp(min=0)
        self.moved = self.a("context") + self.a("meta.2.weight") @ hidden + self.a("meta.2.bias")
        return super().classes(image[None])

    def context(self, index: int) -> Tensor:
        return self.moved


class Deep(Words):
    """Text words 1..n anew before blocks 1..J-1; vision prompts at the end of the sequence, and anew likewise."""

    depth = 2

    def embedded(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.vision_prompt(0).expand(len(x), -1, -1)], 1)

    def before_block(self, tower: str, i: int, x: Tensor) -> Tensor:
        if not 0 < i < self.depth:
            return x
        if tower == "vision":
            prompt = self.vision_prompt(i)
            return torch.cat([x[:, : -len(prompt)], prompt.expand(len(x), -1, -1)], 1)
        prompt = self.a("deep")[i - 1]
        return torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt) :]], 1)

    def vision_prompt(self, i: int) -> Tensor:
        return self.a("ivlp.tokens")[i]


class Whole(Deep):
    depth = DEPTH


class Shallow(Deep):
    depth = 1


class Regulated(Deep):
    def vision_prompt(self, i: int) -> Tensor:
        return self.a("promptsrc.tokens")[i]


class VisionOnly(Deep):
    """The texts stay as they are."""

    depth = DEPTH

    def classes(self, v: Tensor) -> Tensor:
        return Plain.classes(self, v)

    def before_block(self, tower: str, i: int, x: Tensor) -> Tensor:
        return super().before_block(tower, i, x) if tower == "vision" else x


class TextOnly(Deep):
    """The images stay as they are."""

    depth = DEPTH

    def embedded(self, x: Tensor) -> Tensor:
        return x

    def before_block(self, tower: str, i: int, x: Tensor) -> Tensor:
        return x if tower == "vision" else super().before_block(tower, i, x)


class Coupled(Deep):
    """MaPLe: vision prompts g_i(p_i), with the text's own p_i."""

    def vision_prompt(self, i: int) -> Tensor:
        prompt = self.a("context") if i == 0 else self.a("deep")[i - 1]
        return prompt @ self.a(f"maps.{i}.weight").T + self.a(f"maps.{i}.bias")


class CoupledWhole(Coupled):
    depth = DEPTH


class CoupledOnce(Coupled):
    depth = 1


class CoupledPhoto(Coupled):
    """Two vectors for "a photo", and "of a" stays in the text."""

    kept = "of a"


class Adapter(Plain):
    """r relu(W_2 relu(W_1 f)) + (1 - r) f of the features as they leave the projection."""

    ratio = 0.2

    def features(self, images: Tensor, f: Tensor) -> Tensor:
        changed = ((f @ self.a("down.weight").T).clamp(min=0) @ self.a("up.weight").T).clamp(min=0)
        return self.ratio * changed + (1 - self.ratio) * f


class Half(Adapter):
    ratio = 0.5


class Cache(Plain):
    """logits + alpha exp(-beta (1 - v F^T)) Y, with v and the rows of F normalised, Y one-hot."""

    def logits(self, v: Tensor, logits: Tensor) -> Tensor:
        one_hot = torch.eye(len(CLASSES), dtype=v.dtype)[LABELS]
        return logits + 2.0 * (-5.5 * (1 - v @ self.keys().T)).exp() @ one_hot

    def keys(self) -> Tensor:
        return self.unit(SAMPLES)


class TrainedCache(Cache):
    """Tip-Adapter-F: the keys move, and aren't normalised again."""

    def keys(self) -> Tensor:
        return self.a("keys")


class LoRA(Plain):
    """W x + alpha / sqrt(r) B A x on q, k and v of both towers."""

    scale = 1 / math.sqrt(2)

    def linear(self, path: str, x: Tensor) -> Tensor:
        y = super().linear(path, x)
        tower, layer, name = path.split(".")
        if name not in "qkv":
            return y
        a, b = (self.found(tower, layer, name, matrix) for matrix in ("lora_A", "lora_B"))
        return y + self.scale * (x @ a.T @ b.T)

    def found(self, tower: str, layer: str, name: str, matrix: str) -> Tensor:
        vision = ("visual.", "vision_model.")
        at = (f".{layer}.attn.{name}.clip_lora.{matrix}", f".{layer}.self_attn.{name}_proj.clip_lora.{matrix}")
        keys = [key for key in self.own if key.endswith(at) and key.startswith(vision) == (tower == "vision")]
        (key,) = keys
        return self.own[key]


class Side(Plain):
    """g f + (1 - g) side(image) of the projected features."""

    def features(self, images: Tensor, f: Tensor) -> Tensor:
        x = images
        for index in (0, 3):
            x = F.conv2d(x, self.a(f"convolutions.{index}.weight"), stride=2, padding=1)
            weight, bias = (self.a(f"convolutions.{index + 1}.{name}") for name in ("weight", "bias"))
            x = F.group_norm(x, min(8, x.shape[1]), weight, bias).clamp(min=0)
        g = 1 / (1 + (-self.a("alpha")).exp())
        return g * f + (1 - g) * (x.mean((2, 3)) @ self.a("project.weight").T + self.a("project.bias"))


SAMPLES = torch.randn(6, 16, generator=torch.Generator().manual_seed(5)).double()
LABELS = [0, 1, 2, 2, 1, 0]


def spec(method: str, **options: Any) -> dict[str, Any]:
    return {"method": method, **options}


PHOTO = {"init": "a photo of a", "ids": ids("a photo of a")}
FORMULAS: list[tuple[dict[str, Any], type[Plain]]] = [
    (spec("coop", tokens=3), Words),
    (spec("coop", tokens=3, position="middle"), Middle),
    (spec("coop", tokens=4, position="middle"), Middle),
    (spec("coop", tokens=3, position="front"), Front),
    (spec("coop", tokens=3, class_specific=True), OfEachClass),
    (spec("coop", tokens=3, class_specific=True, position="middle"), MiddleOfEachClass),
    (spec("coop", tokens=4, init="a photo of a"), Words),
    (spec("cocoop", tokens=3, reduction=4), Conditional),
    (spec("maple", layers="first:2"), Coupled),
    (spec("maple", layers="all", tokens=3), CoupledWhole),
    (spec("maple", layers=[0]), CoupledOnce),
    (spec("maple", layers="first:2", init="a photo of a"), CoupledPhoto),
    (spec("ivlp", layers="first:2", tokens=2, vision_tokens=3), Deep),
    (spec("ivlp"), Whole),
    (spec("ivlp", layers="first:1"), Shallow),
    (spec("ivlp", tokens=0, vision_tokens=8), VisionOnly),
    (spec("ivlp", tokens=4, vision_tokens=0), TextOnly),
    (spec("promptsrc", layers="first:2"), Regulated),
    (spec("clip_adapter"), Adapter),
    (spec("clip_adapter", ratio=0.5, reduction=2), Half),
    (spec("tip_adapter", shots=2, alpha=2.0, beta=5.5), Cache),
    (spec("tip_adapter", shots=2, alpha=2.0, beta=5.5, trained=True), TrainedCache),
    (spec("clip_lora", dropout=0.0), LoRA),
    (spec("side_tuning", channels=4, depth=2), Side),
]


def build(name: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a classifier in float64 with no weight at zero or one, and its weights."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    base = canonical(model)
    classifier = ZeroShotClassifier(model, CLASSES, ["a {}.", "one more {}."], tokenize)
    return classifier.eval().requires_grad_(False), base


def adapt(model: Any, method: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Adapt with weights moved away from their start; return their copies with gradients."""
    adapters = mmpeft.adapt(model, method)
    if method["method"] == "tip_adapter":
        (cache,) = adapters._edits("main")
        cache.fill(SAMPLES, torch.tensor(LABELS))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return adapters, {key: value.detach().clone().requires_grad_() for key, value in adapters.state_dict().items()}


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_functions_are_the_frozen_model(name: str) -> None:
    model, base = build(name)
    torch.testing.assert_close(model(images()), Plain(base, {})(images()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("method", "formula"), FORMULAS, ids=lambda value: str(getattr(value, "__name__", "")))
def test_output_and_gradients_follow_the_formula(name: str, method: dict[str, Any], formula: type[Plain]) -> None:
    model, base = build(name)
    adapters, own = adapt(model, method)
    expected, found = formula(base, own)(images()), model(images())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    trained = dict(adapters.named_parameters())
    if not trained:
        assert method["method"] == "tip_adapter" and not method.get("trained")
        return
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad((found * direction).sum(), list(trained.values()))
    for key, gradient in zip(trained, gradients, strict=True):
        (reference,) = torch.autograd.grad(
            (expected * direction).sum(), own[key.removeprefix("main.")], retain_graph=True
        )
        assert reference.abs().max() > 1e-6
        torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("each", [1, 2])
def test_cocoop_without_a_classifier_pairs_each_image_with_its_texts(name: str, each: int) -> None:
    model, base = build(name)
    bare = model.backbone
    adapters, own = adapt(bare, spec("cocoop", tokens=3, reduction=4))
    formula = Conditional(base, own)
    words = [CLASSES[i % 3] for i in range(len(images()) * each)]
    text = tokenize([f"X X X {word}." for word in words])
    if name == "hugging_face":
        output = bare(input_ids=text, pixel_values=images())
        found, features = output.text_embeds, output.image_embeds
    else:
        features, found, _ = bare(images(), text)
    v = formula.unit(formula.image(images()))
    expected = []
    for row, word in enumerate(words):
        formula.seeing(v[row // each])
        sentence = formula.sentence(0, word)
        expected.append(formula.unit(formula.text(*formula.assembled([sentence])))[0])
    torch.testing.assert_close(features, v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(found)
    reference = torch.autograd.grad((torch.stack(expected) * direction).sum(), list(own.values()))
    gradients = torch.autograd.grad((found * direction).sum(), adapters.parameters())
    for gradient, wanted, key in zip(gradients, reference, own, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-8, atol=1e-8, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_words_start_as_in_the_papers(name: str) -> None:
    model, base = build(name)
    photo = ids("a photo of a")
    rows = base["text.words"][photo]

    def state(method: dict[str, Any], suffix: str) -> Tensor:
        adapters = mmpeft.adapt(model, method)
        (found,) = (value.clone() for key, value in adapters.state_dict().items() if key.endswith(suffix))
        adapters.remove()
        return found

    words = {"tokens": 4, "init": "a photo of a"}
    assert torch.equal(state(spec("coop", **words), "context"), rows)
    assert torch.equal(state(spec("coop", **words, class_specific=True), "context"), rows.expand(len(CLASSES), -1, -1))
    assert torch.equal(state(spec("cocoop", init="a photo of a"), "context"), rows)
    assert torch.equal(state(spec("maple", layers=[0, 1], init="a photo of a"), "context"), rows[:2])
    assert torch.equal(state(spec("ivlp", init="a photo of a"), "context"), rows[:2])
    assert torch.equal(state(spec("coop", tokens=4, ids=photo), "context"), rows)
    for found in (
        state(spec("coop", tokens=100, class_specific=True), "context"),
        state(spec("ivlp", tokens=200, vision_tokens=8), "deep"),
        state(spec("ivlp", tokens=2, vision_tokens=300), "tokens"),
    ):
        assert abs(found.mean()) < 0.001 and 0.019 < found.std() < 0.021


def test_starting_from_the_words_of_the_text_changes_nothing() -> None:
    model, _base = build("custom_text")
    model.templates = ("a photo of a {}.",)
    model.reset()
    frozen = model(images())
    mmpeft.adapt(model, spec("coop", tokens=4, init="a photo of a"))
    torch.testing.assert_close(model(images()), frozen, rtol=1e-10, atol=1e-10)


def test_maple_couples_by_maps_that_start_equal_behind_the_first() -> None:
    model, _ = build("custom_text")
    state = mmpeft.adapt(model, spec("maple", layers="all")).state_dict()
    first, second, third = (state[f"visual.tokens.maple.maps.{i}.weight"] for i in range(3))
    assert torch.equal(second, third) and not torch.equal(first, second)
    assert first.shape == (32, 24) and 0.9 / math.sqrt(24) < first.abs().max() <= 1 / math.sqrt(24)


def test_every_method_has_a_formula() -> None:
    ours = {name: method.facts for name, method in mmpeft.methods().items() if method.package() is None}
    formulas = {method["method"] for method, _ in [*ONE_TOWER, *FORMULAS]}
    assert {name for name, facts in ours.items() if not facts.tested_by} == formulas | ELSEWHERE
