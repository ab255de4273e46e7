"""A CLIP in plain functions, with a place for each method to change, and three libraries' weights in one layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Text = list[int]
HEADS, DEPTH, LENGTH, PATCH = 2, 3, 12, 8
START, END, PAD, STOP = 48, 49, 0, 47
CLASSES = ("disc", "red ring", "star")
TEMPLATES = ("a {}.", "one more {}.")


def ids(words: str) -> Text:
    """Return a token for each word, by its first letter, and one for the full stop."""
    return [STOP if word == "." else 1 + ord(word[0].lower()) % 40 for word in words.replace(".", " .").split()]


def tokenize(texts: list[str]) -> Tensor:
    """Return (texts, LENGTH), cut as CLIP's own tokenizer does: the last token is always the end."""
    rows = [[*[START, *ids(text)][: LENGTH - 1], END] for text in texts]
    return torch.tensor([row + [PAD] * (LENGTH - len(row)) for row in rows])


class Plain:
    """Images and classes to logits; ``base`` has the weights by tower, layer and name, ``own`` those of the adapter."""

    def __init__(self, base: Weights, own: Weights) -> None:
        self.p, self.own = base, own

    def a(self, suffix: str) -> Tensor:
        """Return the adapter's only tensor whose key ends like this."""
        (value,) = (value for key, value in self.own.items() if key.endswith(suffix))
        return value

    def __call__(self, images: Tensor) -> Tensor:
        v = self.unit(self.image(images))
        logits = self.p["scale"].exp() * torch.einsum("bd,bcd->bc", v, self.classes(v))
        return self.logits(v, logits)

    def classes(self, v: Tensor) -> Tensor:
        """Return (images, classes, width): the normalised mean over templates of normalised texts."""
        texts = [[self.plain(template.format(name)) for name in CLASSES] for template in TEMPLATES]
        features = torch.stack([self.unit(self.text(*self.assembled(row))) for row in texts])
        return self.unit(features.mean(0)).expand(len(v), -1, -1)

    def plain(self, text: str) -> Tensor:
        return self.p["text.words"][[START, *ids(text), END]]

    def assembled(self, texts: list[Tensor]) -> tuple[Tensor, list[int]]:
        """Pad texts of vectors (words, width) with the embedding of the padding; the last word is the end of text."""
        pad = self.p["text.words"][PAD]
        rows = [torch.cat([text, pad.expand(LENGTH - len(text), -1)]) for text in texts]
        return torch.stack(rows), [len(text) - 1 for text in texts]

    def text(self, x: Tensor, ends: list[int]) -> Tensor:
        x = x + self.p["text.position"]
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        x = self.blocks("text", x, torch.zeros(LENGTH, LENGTH, dtype=x.dtype).masked_fill(mask, -math.inf))
        x = self.norm("text.ln_post", x)[torch.arange(len(x)), ends]
        return x @ self.p["text.projection"]

    def image(self, images: Tensor) -> Tensor:
        x = F.conv2d(images, self.p["vision.patch"], stride=PATCH).flatten(2).transpose(1, 2)
        x = torch.cat([self.p["vision.class"].expand(len(x), 1, -1), x], 1) + self.p["vision.position"]
        x = self.norm("vision.ln_pre", self.embedded(x))
        x = self.norm("vision.ln_post", self.blocks("vision", x, None)[:, 0])
        return self.features(images, x @ self.p["vision.projection"])

    def blocks(self, tower: str, x: Tensor, mask: Tensor | None) -> Tensor:
        for i in range(DEPTH):
            x = self.before_block(tower, i, x)
            path = f"{tower}.{i}"
            x = x + self.attention(path, self.norm(f"{path}.ln_1", x), mask)
            hidden = self.activation(self.linear(f"{path}.up", self.norm(f"{path}.ln_2", x)))
            x = x + self.linear(f"{path}.down", hidden)
        return x

    def attention(self, path: str, h: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (self.linear(f"{path}.{n}", h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in "qkv")
        if f"{path}.ln_q.weight" in self.p:
            q, k = self.norm(f"{path}.ln_q", q), self.norm(f"{path}.ln_k", k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mixed = (scores if mask is None else scores + mask).softmax(-1) @ v
        return self.linear(f"{path}.out", mixed.transpose(1, 2).flatten(2))

    def activation(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x) if "quick" in self.p else F.gelu(x)

    def linear(self, path: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{path}.weight"].T + self.p[f"{path}.bias"]

    def norm(self, path: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.p[f"{path}.weight"] + self.p[f"{path}.bias"]

    def unit(self, x: Tensor) -> Tensor:
        return x / x.square().sum(-1, keepdim=True).sqrt()

    def embedded(self, x: Tensor) -> Tensor:
        return x

    def before_block(self, tower: str, i: int, x: Tensor) -> Tensor:
        return x

    def features(self, images: Tensor, f: Tensor) -> Tensor:
        return f

    def logits(self, v: Tensor, logits: Tensor) -> Tensor:
        return logits


def _open_clip(kind: type[Any], **options: Any) -> Any:
    size = {"layers": DEPTH, **options}
    vision = {"image_size": 32, "patch_size": PATCH, "head_width": 16, "width": 32, **size}
    text = {"context_length": LENGTH, "vocab_size": 50, "heads": HEADS, "width": 24, **size}
    return kind(16, vision, text)


def custom_text() -> Any:
    from open_clip.model import CustomTextCLIP

    return _open_clip(CustomTextCLIP)


def built_in() -> Any:
    from open_clip.model import CLIP

    return _open_clip(CLIP)


def custom_attention() -> Any:
    from open_clip.model import CustomTextCLIP

    return _open_clip(CustomTextCLIP, block_type="custom", qk_norm=True)


def hugging_face() -> Any:
    from transformers import CLIPConfig, CLIPModel

    size = {"num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 48}
    special = {"bos_token_id": START, "eos_token_id": END}
    text = {"vocab_size": 50, "max_position_embeddings": LENGTH, "hidden_size": 24, **special, **size}
    vision = {"image_size": 32, "patch_size": PATCH, "hidden_size": 32, **size}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


MODELS: dict[str, Callable[[], Any]] = {
    function.__name__: function for function in (custom_text, built_in, custom_attention, hugging_face)
}


def canonical(model: Any) -> Weights:
    """Return a model's weights by the names that ``Plain`` uses."""
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    return _from_transformers(state) if "visual_projection.weight" in state else _from_open_clip(state)


def _from_open_clip(state: Weights) -> Weights:
    text = "text." if "text.token_embedding.weight" in state else ""
    found = {
        "scale": state["logit_scale"],
        "vision.class": state["visual.class_embedding"],
        "vision.patch": state["visual.conv1.weight"],
        "text.words": state[f"{text}token_embedding.weight"],
        "vision.projection": state["visual.proj"],
        "text.projection": state[f"{text}text_projection"],
        **_layer(state, "visual.ln_pre", "vision.ln_pre"),
        **_layer(state, "visual.ln_post", "vision.ln_post"),
        **_layer(state, f"{text}ln_final", "text.ln_post"),
    }
    for tower, root in (("vision", "visual."), ("text", text)):
        found[f"{tower}.position"] = state[f"{root}positional_embedding"]
        for i in range(DEPTH):
            at, to = f"{root}transformer.resblocks.{i}", f"{tower}.{i}"
            for kind in ("weight", "bias"):
                parts = zip("qkv", state[f"{at}.attn.in_proj_{kind}"].chunk(3), strict=True)
                found |= {f"{to}.{name}.{kind}": value for name, value in parts}
            names = {"attn.out_proj": "out", "ln_1": "ln_1", "ln_2": "ln_2", "mlp.c_fc": "up", "mlp.c_proj": "down"}
            for old, new in {**names, "attn.ln_q": "ln_q", "attn.ln_k": "ln_k"}.items():
                found |= _layer(state, f"{at}.{old}", f"{to}.{new}")
    return found


def _from_transformers(state: Weights) -> Weights:
    found = {
        "quick": torch.ones(()),
        "scale": state["logit_scale"],
        "vision.class": state["vision_model.embeddings.class_embedding"],
        "vision.patch": state["vision_model.embeddings.patch_embedding.weight"],
        "text.words": state["text_model.embeddings.token_embedding.weight"],
        "vision.projection": state["visual_projection.weight"].T,
        "text.projection": state["text_projection.weight"].T,
        **_layer(state, "vision_model.pre_layrnorm", "vision.ln_pre"),
        **_layer(state, "vision_model.post_layernorm", "vision.ln_post"),
        **_layer(state, "text_model.final_layer_norm", "text.ln_post"),
    }
    names = {f"self_attn.{name}_proj": name for name in ("q", "k", "v", "out")}
    names |= {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "up", "mlp.fc2": "down"}
    for tower in ("vision", "text"):
        found[f"{tower}.position"] = state[f"{tower}_model.embeddings.position_embedding.weight"]
        for i in range(DEPTH):
            for old, new in names.items():
                found |= _layer(state, f"{tower}_model.encoder.layers.{i}.{old}", f"{tower}.{i}.{new}")
    return found


def _layer(state: Weights, old: str, new: str) -> Weights:
    return {f"{new}.{kind}": state[f"{old}.{kind}"] for kind in ("weight", "bias") if f"{old}.{kind}" in state}
