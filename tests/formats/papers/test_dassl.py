"""Dassl's directories, written as its trainers do, against the papers' forward on a tiny open_clip model by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpeft
from mmpeft.formats import convert
from mmpeft.heads.zero_shot import ZeroShotClassifier

TEXT, VISION, JOINT, DEPTH, CLASSES = 32, 48, 16, 3, ("disc", "ring", "star")
State = dict[str, Tensor]


def words(texts: list[str]) -> Tensor:
    """Each letter's place in the alphabet, between a start and an end, in 9 places."""
    rows = [[48, *(1 + ord(word[0].lower()) % 40 for word in text.replace(".", " .").split()), 49] for text in texts]
    return torch.tensor([row + [0] * (9 - len(row)) for row in rows])


def build(library: str = "open_clip") -> ZeroShotClassifier:
    """The same weights in each library's model."""
    from open_clip.model import CLIP, CustomTextCLIP

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "head_width": 16, "layers": DEPTH, "width": VISION}
    text = {"context_length": 9, "vocab_size": 50, "heads": 2, "layers": DEPTH, "width": TEXT}
    model: Any = CLIP(JOINT, vision, text)
    if library == "open_clip_custom_text":
        state = model.state_dict()
        model = CustomTextCLIP(JOINT, vision, text)
        model.load_state_dict({k if k.startswith(("visual", "logit")) else f"text.{k}": v for k, v in state.items()})
    if library == "transformers":
        model = translated(model.state_dict())
    return ZeroShotClassifier(model.eval(), CLASSES, ["a photo of a {}."], words)


NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "transformer.resblocks": "text_model.encoder.layers",
}
INNER = {".attn.out_proj": ".self_attn.out_proj", ".ln_": ".layer_norm", ".mlp.c_fc": ".mlp.fc1", "c_proj": "fc2"}


def translated(state: State) -> Any:
    """The weights of open_clip's model in transformers' one."""
    from transformers import CLIPConfig, CLIPModel

    own: State = {}
    for key, value in state.items():
        start = max((name for name in NAMES if key.startswith(name)), key=len, default="")
        name = NAMES.get(start, "") + key.removeprefix(start)
        for theirs, ours in INNER.items():
            name = name.replace(theirs, ours)
        parts = zip("qkv", value.chunk(3), strict=True) if "in_proj" in key else ()
        own |= {name.replace("attn.in_proj_", f"self_attn.{letter}_proj."): part for letter, part in parts}
        if "in_proj" not in key:
            own[name] = value.T if start in ("visual.proj", "text_projection") else value
    sizes = {"num_hidden_layers": DEPTH, "hidden_act": "gelu"}
    text = {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 48, "eos_token_id": 49, **sizes}
    text |= {"hidden_size": TEXT, "intermediate_size": 4 * TEXT, "num_attention_heads": 2}
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": VISION, "num_attention_heads": 3, **sizes}
    vision["intermediate_size"] = 4 * VISION
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT))
    model.load_state_dict(own)
    return model


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def random(*shape: int, half: bool = False) -> Tensor:
    return (torch.randn(shape) * 0.3).half() if half else torch.randn(shape) * 0.3


def text_features(clip: Any, ids: Tensor, embedded: Tensor, deep: list[Tensor] | None = None) -> Tensor:
    """The text tower; ``deep`` takes the first words' places before blocks 1, 2, ..."""
    x = embedded + clip.positional_embedding
    for i, block in enumerate(clip.transformer.resblocks):
        if i and deep and i <= len(deep):
            x = torch.cat([x[:, :1], deep[i - 1].float().expand(len(x), -1, -1), x[:, 1 + len(deep[0]) :]], 1)
        x = block(x, attn_mask=clip.attn_mask)
    x = clip.ln_final(x)
    return x[torch.arange(len(x)), ids.argmax(-1)] @ clip.text_projection


def image_features(clip: Any, prompts: list[Tensor] | None = None) -> Tensor:
    """The vision tower; the first prompts go to the end of the sequence before ln_pre, the others replace them."""
    own = clip.visual
    x = own.conv1(images()).flatten(2).transpose(1, 2)
    x = torch.cat([own.class_embedding.expand(len(x), 1, -1), x], 1) + own.positional_embedding
    if prompts:
        x = torch.cat([x, prompts[0].float().expand(len(x), -1, -1)], 1)
    x = own.ln_pre(x)
    for i, block in enumerate(own.transformer.resblocks):
        if i and prompts and i < len(prompts):
            x = torch.cat([x[:, : -len(prompts[0])], prompts[i].float().expand(len(x), -1, -1)], 1)
        x = block(x)
    return own.ln_post(x[:, 0]) @ own.proj


def logits(clip: Any, image: Tensor, text: Tensor) -> Tensor:
    return clip.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


def frozen(clip: Any) -> State:
    """What Dassl's whole models hold of CLIP."""
    state = clip.state_dict()
    rest = {f"text_encoder.{key}": value for key, value in state.items() if not key.startswith(("visual", "logit"))}
    vision = {key.replace("visual", "image_encoder"): value for key, value in state.items() if key.startswith("visual")}
    buffers = {"prompt_learner.token_prefix": random(3, 1, TEXT), "prompt_learner.token_suffix": random(3, 5, TEXT)}
    return vision | rest | buffers | {"logit_scale": state["logit_scale"]}


def template(clip: Any, text: str) -> tuple[Tensor, Tensor]:
    ids = words([text.format(name) for name in CLASSES])
    return ids, clip.token_embedding(ids)


def coop(clip: Any, position: str = "end", specific: bool = False) -> tuple[State, Tensor]:
    """[start][v1 v2 v3][class][.][end], or the class in the middle or in front."""
    ctx = random(3, 3, TEXT) if specific else random(3, TEXT)
    own = ctx if specific else ctx.expand(3, -1, -1)
    ids, embedded = template(clip, "X X X {}.")
    start, name, rest = embedded[:, :1], embedded[:, 4:5], embedded[:, 5:]
    order = {"end": [own, name], "middle": [own[:, :1], name, own[:, 1:]], "front": [name, own]}
    text = text_features(clip, ids, torch.cat([start, *order[position], rest], 1))
    state = {"ctx": ctx, "token_prefix": start, "token_suffix": embedded[:, 4:]}
    return state, logits(clip, image_features(clip), text)


def cocoop(clip: Any) -> tuple[State, Tensor]:
    """The words v + h(f) of each image, f normalised."""
    state = {"ctx": random(2, TEXT), "token_prefix": random(3, 1, TEXT), "token_suffix": random(3, 6, TEXT)}
    shapes = {"linear1.weight": (4, JOINT), "linear1.bias": (4,), "linear2.weight": (TEXT, 4), "linear2.bias": (TEXT,)}
    state |= {f"meta_net.{key}": random(*shape) for key, shape in shapes.items()}
    net = [state[f"meta_net.{key}"] for key in shapes]
    ids, embedded = template(clip, "X X {}.")
    rows = []
    for feature in F.normalize(image_features(clip), dim=-1):
        moved = state["ctx"] + F.linear(F.linear(feature, *net[:2]).relu(), *net[2:])
        assembled = torch.cat([embedded[:, :1], moved.expand(3, -1, -1), embedded[:, 3:]], 1)
        rows.append(logits(clip, feature[None], text_features(clip, ids, assembled)))
    return state, torch.cat(rows)


def maple(clip: Any, depth: int = 3) -> tuple[State, Tensor]:
    """Two words take the place of "a photo", "of a" stays; the vision prompts are linear images of the text's."""
    own: State = {"ctx": random(2, TEXT, half=True), "proj.weight": random(VISION, TEXT, half=True)}
    own["proj.bias"] = random(VISION, half=True)
    for i in range(depth - 1):
        own[f"compound_prompts_text.{i}"] = random(2, TEXT)
        own[f"compound_prompt_projections.{i}.weight"] = random(VISION, TEXT)
        own[f"compound_prompt_projections.{i}.bias"] = random(VISION)
    deep = [own[f"compound_prompts_text.{i}"] for i in range(depth - 1)]
    maps = ["proj", *(f"compound_prompt_projections.{i}" for i in range(depth - 1))]
    texts = [own["ctx"], *deep]
    pairs = zip(maps, texts, strict=True)
    vision = [F.linear(t.float(), own[f"{m}.weight"].float(), own[f"{m}.bias"].float()) for m, t in pairs]
    ids, embedded = template(clip, "a photo of a {}.")
    embedded = torch.cat([embedded[:, :1], own["ctx"].float().expand(3, -1, -1), embedded[:, 3:]], 1)
    whole = frozen(clip) | {f"prompt_learner.{key}": value for key, value in own.items()}
    return whole, logits(clip, image_features(clip, vision), text_features(clip, ids, embedded, deep))


def independent(clip: Any, text: int, vision: int, copies: bool = False) -> tuple[State, Tensor]:
    """Prompts of their own in each tower, down to ``text`` and ``vision`` blocks; none where that is 0."""
    state = frozen(clip)
    if copies:
        copied = {key for key in state if key.startswith("image_encoder")}
        state |= {f"prompt_learner.ZS_{key}": state[key] for key in copied}
    ids, embedded = template(clip, "a photo of a {}.")
    deep = [random(4, TEXT) for _ in range(text - 1)]
    tokens = [random(2, VISION) for _ in range(vision)]
    if text:
        state["prompt_learner.ctx"] = random(4, TEXT)
        embedded = torch.cat([embedded[:, :1], state["prompt_learner.ctx"].expand(3, -1, -1), embedded[:, 5:]], 1)
    for i, value in enumerate(deep, 1):
        state[f"text_encoder.transformer.resblocks.{i}.VPT_shallow"] = value
    for i, value in enumerate(tokens):
        state[f"image_encoder.transformer.resblocks.{i}.VPT_shallow" if i else "image_encoder.VPT"] = value
    return state, logits(clip, image_features(clip, tokens), text_features(clip, ids, embedded, deep))


def clip_adapter(clip: Any) -> tuple[State, Tensor]:
    """0.4 relu(W2 relu(W1 v)) + 0.6 v."""
    state = {"fc.0.weight": random(4, JOINT), "fc.2.weight": random(JOINT, 4)}
    v = image_features(clip)
    blended = 0.4 * F.linear(F.linear(v, state["fc.0.weight"]).relu(), state["fc.2.weight"]).relu() + 0.6 * v
    return state, logits(clip, blended, text_features(clip, *template(clip, "a photo of a {}.")))


CASES: dict[str, tuple[str, Callable[[Any], tuple[State, Tensor]], dict[str, Any], list[str]]] = {
    "coop": ("prompt_learner", coop, {"position": "end"}, ["coop"]),
    "coop in the middle": ("prompt_learner", partial(coop, position="middle"), {"position": "middle"}, ["coop"]),
    "coop in front": ("prompt_learner", partial(coop, position="front"), {"position": "front"}, ["coop"]),
    "coop per class": ("prompt_learner", partial(coop, specific=True), {"position": "end"}, ["coop"]),
    "cocoop": ("prompt_learner", cocoop, {}, ["cocoop"]),
    "maple": ("MultiModalPromptLearner", maple, {"init": "a photo of a"}, ["maple"]),
    "maple shallow": ("MultiModalPromptLearner", partial(maple, depth=1), {"init": "a photo of a"}, ["maple"]),
    "vpt": ("prompt_learner", partial(independent, text=0, vision=3), {"init": ""}, ["ivlp"]),
    "language": ("VLPromptLearner", partial(independent, text=2, vision=0), {"init": "a photo of a"}, ["ivlp"]),
    "ivlp": ("VLPromptLearner", partial(independent, text=2, vision=2), {"init": "a photo of a"}, ["ivlp"]),
    "ivlp uneven": ("VLPromptLearner", partial(independent, text=1, vision=3), {"init": "a photo of a"}, ["ivlp"] * 2),
    "promptsrc": (
        "VLPromptLearner",
        partial(independent, text=3, vision=3, copies=True),
        {"init": "a photo of a"},
        ["promptsrc"],
    ),
    "clip_adapter": ("clip_adapter", clip_adapter, {"ratio": 0.4}, ["clip_adapter"]),
}


def write(directory: Path, folder: str, state: State, epoch: int = 5) -> Path:
    """Write a checkpoint as Dassl does, with a live scheduler in it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    inside = {"successor": scheduler, "last_epoch": epoch}
    content = {"state_dict": state, "epoch": epoch, "optimizer": optimizer.state_dict(), "scheduler": inside}
    (directory / folder).mkdir(parents=True, exist_ok=True)
    torch.save(content | {"val_result": None}, directory / folder / f"model.pth.tar-{epoch}")
    (directory / folder / "checkpoint").write_text(f"model.pth.tar-{epoch}\n")
    return directory / folder / f"model.pth.tar-{epoch}"


@pytest.mark.parametrize("library", ["open_clip", "open_clip_custom_text", "transformers"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_an_import_is_the_papers_function(name: str, library: str, tmp_path: Path) -> None:
    folder, make, options, methods = CASES[name]
    torch.manual_seed(7)
    state, expected = make(build().backbone)
    write(tmp_path / "seed1", folder, state)
    notes = convert(tmp_path / "seed1", tmp_path / "ours", "dassl", model=library, **options)
    assert not any("assumed" in note for note in notes)
    model = build(library)
    before = model(images())
    handle = mmpeft.load(model, tmp_path / "ours")
    assert [method.name for method in handle.methods()] == methods
    torch.testing.assert_close(model(images()), expected, atol=1e-5, rtol=1e-5)
    assert (before - expected).abs().max() > 1e-3


def test_which_file(tmp_path: Path) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        first, second = (coop(build().backbone)[0] for _ in range(2))
    path = write(tmp_path, "prompt_learner", first, 3)
    write(tmp_path, "prompt_learner", second, 9)

    def context(source: Path, **options: Any) -> Tensor:
        convert(source, tmp_path / "ours", "dassl", **options)
        model = build()
        return mmpeft.load(model, tmp_path / "ours").state_dict()["prompt.coop.context"]

    assert torch.equal(context(tmp_path), second["ctx"])
    assert torch.equal(context(tmp_path / "prompt_learner"), second["ctx"])
    assert torch.equal(context(tmp_path, epoch=3), first["ctx"])
    assert torch.equal(context(path), first["ctx"])
    path.rename(path.with_name("model-best.pth.tar"))
    assert torch.equal(context(tmp_path, epoch="best"), first["ctx"])
    with pytest.raises(ValueError, match=r"epoch: .* holds no 'model.pth.tar-3' \(did you mean 'model.pth.tar-9'"):
        context(tmp_path, epoch=3)
    (tmp_path / "prompt_learner/checkpoint").write_text("../../secrets")
    with pytest.raises(ValueError, match=r"holds no '\.\./\.\./secrets'"):
        context(tmp_path)
    (tmp_path / "prompt_learner/checkpoint").unlink()
    with pytest.raises(ValueError, match="no text file 'checkpoint'"):
        context(tmp_path)
    with pytest.raises(ValueError, match=r"holds no model\.pth\.tar-EPOCH"):
        context(tmp_path / "ours")


BROKEN = {
    "coop": ("ctx", "ctx"),
    "cocoop": ("meta_net.linear2.bias", "meta_net.linear2.weight"),
    "maple": ("prompt_learner.compound_prompt_projections.1.bias", "prompt_learner.compound_prompts_text.0"),
    "promptsrc": (
        "text_encoder.transformer.resblocks.1.VPT_shallow",
        "image_encoder.transformer.resblocks.2.VPT_shallow",
    ),
    "clip_adapter": ("fc.2.weight", "fc.2.weight"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_problem_of_a_file_is_in_one_error(name: str, tmp_path: Path) -> None:
    folder, make, options, _ = CASES[name]
    with torch.no_grad():
        state, _ = make(build().backbone)
    missing, bent = BROKEN[name]
    state[bent] = torch.ones([size + 1 for size in state[bent].shape])
    state["surplus"] = state.pop(missing)
    write(tmp_path, folder, state)
    with pytest.raises(ValueError) as error:
        convert(tmp_path, tmp_path / "ours", "dassl", **options)
    lines = str(error.value).splitlines()
    if name == "coop":
        assert "no 2-dimensional tensor is named like ctx" in lines[1]
    else:
        assert f"  missing {missing.removeprefix('prompt_learner.')}" in lines
        bent = bent.removeprefix("prompt_learner.")
        assert missing == bent or any(line.startswith(f"  {bent}: shape") for line in lines)
        assert "  unexpected surplus" in lines
    assert not (tmp_path / "ours").exists()


def test_what_is_assumed_is_what_matters(tmp_path: Path) -> None:
    with torch.no_grad():
        write(tmp_path / "a", "prompt_learner", coop(build().backbone)[0])
        write(tmp_path / "b", "clip_adapter", clip_adapter(build().backbone)[0])
    notes = convert(tmp_path / "a", tmp_path / "ours", "dassl")
    assert [note.partition(" assumed")[0] for note in notes[:2]] == ["model=open_clip", "position=end"]
    assert notes[2] == "model.pth.tar-5: CoOp"
    notes = convert(tmp_path / "b", tmp_path / "ours", "dassl")
    assert [note.partition(" assumed")[0] for note in notes[:2]] == ["model=open_clip", "ratio=0.2"]


@pytest.mark.parametrize("kind", ["directory", "loop", "pipe", "endless"])
def test_a_checkpoint_that_is_no_text_file(kind: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "model.pth.tar-2")
    make: dict[str, Callable[[Path], object]] = {
        "directory": Path.mkdir,
        "loop": lambda path: path.symlink_to(path),
        "pipe": os.mkfifo,
        "endless": lambda path: path.symlink_to("/dev/zero"),
    }
    make[kind](tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="has no text file 'checkpoint' that names the latest"):
        convert(tmp_path, tmp_path / "ours", "dassl")
