"""The classifier by texts: its embeddings, when they are computed, and what it refuses."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from classifiers import CLASSES, TEMPLATES, adapt, ids, images, marked, text_passes, unit, unmarked

from mmpeft.heads.zero_shot import ZeroShotClassifier


@torch.no_grad()
def test_class_embeddings_are_the_mean_over_templates(build: Any) -> None:
    model = build()
    bare = model.backbone
    texts = [[template.replace("{}", name) for name in CLASSES] for template in TEMPLATES]
    weight = unit(torch.stack([unit(bare.encode_text(marked(row))) for row in texts]).mean(0))
    torch.testing.assert_close(model.class_embeddings(), weight)
    logits = bare.logit_scale.exp() * unit(bare.encode_image(images())) @ weight.T
    torch.testing.assert_close(model(images()), logits)
    assert not torch.allclose(model(images()), build(templates=TEMPLATES[:1])(images()), atol=1e-3)
    assert list(dict(model.named_children())) == ["backbone", "head"]


@pytest.mark.parametrize("method", ["coop", "lora", "maple"])
@torch.no_grad()
def test_an_adapted_text_tower_averages_over_templates_too(method: str, build: Any) -> None:
    options: dict[str, Any] = {"coop": {"tokens": 3}, "maple": {"layers": "first:2"}}.get(method, {"towers": "text"})
    model = build()
    adapters = adapt(model, method, **options)
    templates = {"coop": ["X X X {}."], "maple": ["X X {}."]}.get(method, TEMPLATES)
    texts = [[template.replace("{}", name) for name in CLASSES] for template in templates]
    weight = unit(torch.stack([unit(model.backbone.encode_text(marked(row))) for row in texts]).mean(0))
    torch.testing.assert_close(model.class_embeddings(), weight)
    with adapters.off():
        assert torch.equal(model.class_embeddings(), F.normalize(model.head.weight, dim=-1))


@pytest.mark.parametrize("method", ["lora", "clip_adapter", "side_tuning"])
def test_the_text_tower_rests_while_only_images_are_adapted(method: str, build: Any) -> None:
    model = build()
    adapters = adapt(model, method, towers="vision")
    with text_passes(model) as seen:
        model.train()(images()).sum().backward()
        adapters.check_gradients()
        with torch.no_grad():
            model.eval()(images())
            model.class_embeddings()
    assert seen == []


def test_the_text_tower_runs_once_a_pass_in_training_and_once_in_evaluation(build: Any) -> None:
    model = build()
    adapters = adapt(model, "lora", towers="text")
    with text_passes(model) as seen:
        for _ in range(2):
            model.train()(images()).sum().backward()
        model.eval()(images())
        assert seen == [6] * 3
        with torch.no_grad():
            for _ in range(3):
                found = model(images())
        assert seen == [6] * 4
        with torch.no_grad(), adapters.off():
            model(images())
        with torch.no_grad():
            assert torch.equal(model(images()), found)
    assert seen == [6] * 4


def test_cocoop_runs_the_text_tower_for_each_image_and_class(build: Any) -> None:
    model = build()
    adapt(model, "cocoop", tokens=3)
    with text_passes(model) as seen, torch.no_grad():
        model(images())
        model(images(2))
    assert seen == [12, 6]
    with pytest.raises(ValueError, match="other ones for each image"):
        model.class_embeddings()


CHANGES = {
    "in place": lambda model, adapters: adapters.parameters()[0].mul_(-2),
    "loaded": lambda model, adapters: adapters.load_state_dict({k: -2 * v for k, v in adapters.state_dict().items()}),
    "activated": lambda model, adapters: adapters.activate("main", weights=[0.5]),
    "another": lambda model, adapters: adapt(model, "coop", "other", 2, tokens=3),
    "past the count": lambda model, adapters: (model.train(), adapters.parameters()[0].data.mul_(-2), model.eval()),
    "precision": lambda model, adapters: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_evaluation_sees_changed_weights(change: str, build: Any) -> None:
    model = build()
    adapters = adapt(model, "coop", tokens=3)
    before = model(images())
    CHANGES[change](model, adapters)
    found = model(images().to(next(model.backbone.parameters()).dtype))
    expected = model.class_embeddings()
    assert change == "precision" or not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(found, model.head(model.joint.image(images().to(found)), model.joint.scale(), expected))


@torch.no_grad()
def test_a_removed_adapter_is_not_taken_for_the_next_of_its_name(build: Any) -> None:
    model = build()
    for seed in range(20):
        adapters = adapt(model, "coop", seed=seed, tokens=2)
        found = model(images(1))
        expected = model.head(model.joint.image(images(1)), model.joint.scale(), model.class_embeddings())
        assert torch.equal(found, expected)
        adapters.remove()
        del adapters
        gc.collect()  # else the next one's tensors don't get the places of these


@torch.no_grad()
def test_reset_reads_the_text_tower_without_adapters(build: Any) -> None:
    model = build()
    frozen = model(images())
    adapters = adapt(model, "coop", tokens=3)
    model.reset()
    with adapters.off():
        assert torch.equal(model(images()), frozen)
    for parameter in model.backbone.text.parameters():
        parameter.add_(torch.randn_like(parameter))
    with adapters.off():
        assert torch.equal(model(images()), frozen)
        model.reset()
        assert not torch.allclose(model(images()), frozen, atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ((), TEMPLATES, "classes: none given"),
        ("disc", TEMPLATES, "classes: 'disc' is one text"),
        (CLASSES, (), r"templates: \[\]: each needs one place \{\}"),
        (CLASSES, "a {}.", r"templates: 'a \{\}.' is one text"),
        (CLASSES, ("a {}.", "a"), r"templates: .*'a'\]: each needs one place"),
        (CLASSES, ("{} or {}",), "each needs one place"),
        (CLASSES, ("{0} {}",), "each needs one place"),
        (CLASSES, ("this is one very long text of a {}.",), "'this is one very long text of a disc.' is cut off at"),
        (CLASSES, ("one two three four five {}.",), "'one two three four five red ring.' is cut off at .* 9 tokens"),
    ],
)
def test_texts_that_can_not_work_are_named(classes: Any, templates: Any, message: str, make_case: Any) -> None:
    backbone = make_case("lora", "open_clip").build()
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(backbone, classes, templates, marked)


def test_a_text_that_just_fits_is_not_cut_off(build: Any) -> None:
    build(templates=("one two three four {}.",))
    build("siglip", ("one two three four five six {}.",), unmarked)
    with pytest.raises(ValueError, match="cut off"):
        build("siglip", ("one two three four five six seven {}.",), unmarked)


def test_models_that_can_not_work_are_named(make_case: Any, build: Any) -> None:
    with pytest.raises(ValueError, match="model: VisionTransformer has no towers of images and text in one space"):
        ZeroShotClassifier(make_case("lora", "vit").build(), CLASSES, TEMPLATES, marked)
    model = build()
    adapt(model.backbone, "lora")
    with pytest.raises(ValueError, match="model: it carries adapters already"):
        ZeroShotClassifier(model.backbone, CLASSES, TEMPLATES, marked)


def test_words_are_without_what_surrounds_every_text(build: Any) -> None:
    photo = tuple(ids("a photo of a"))
    assert build().words("a photo of a") == photo
    assert build("siglip", tokenizer=unmarked).words("a photo of a") == photo
    assert build().words("") == ()
