"""transformers: CLIP and SigLIP, whole or one tower, in both layouts of their text model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mmpeft.anatomies.anatomy import Anatomy, Joint, own_modules, parameters_site
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.layers import is_linear, is_multihead
from mmpeft.anatomies.libraries.linear import embed_site, is_norm, linear_site, norm_site, projection_sites, site_name
from mmpeft.anatomies.libraries.open_clip import bias, scale
from mmpeft.anatomies.sites import BranchSite, FeaturesSite, PromptSite, SequenceSite, Site
from mmpeft.anatomies.towers import Block, Tower

FAMILIES = ("clip", "siglip")
NO_HEAD = "the model has no classifier of its own: mmpeft.zero_shot makes one of both towers"
NO_TOKENS = "only a vision transformer takes more tokens at any place"
NO_PROMPT = "only a text tower takes prompts"
NO_FEATURES = "the model has no projection into a joint space"


def read(model: nn.Module) -> Anatomy | None:
    """Return the anatomy of a CLIP or SigLIP model of transformers."""
    families = (f"transformers.models.{family}.modeling_{family}" for family in FAMILIES)
    if plain_class(model).__module__ not in families:
        return None
    modules = dict(own_modules(model))
    stacks = [path for path in modules if path.endswith("encoder.layers") or path == "layers"]
    joint = Joint(model, encode_image, encode_text, scale, bias) if hasattr(model, "logit_scale") else None
    return Anatomy(model, "transformers", tuple(_tower(model, modules, stack) for stack in stacks), joint)


def encode_image(model: Any, images: Tensor) -> Tensor:
    """Return the projected features of images."""
    return _pooled(model.get_image_features(pixel_values=images))


def encode_text(model: Any, ids: Tensor) -> Tensor:
    """Return the projected features of texts."""
    return _pooled(model.get_text_features(input_ids=ids))


def _pooled(output: Any) -> Tensor:
    """Return the projected features; up to transformers 4 they were the output itself."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _tower(model: nn.Module, modules: dict[str, Any], stack: str) -> Tower:
    path = stack.removesuffix("encoder.layers").rstrip(".")
    kind = path + type(model).__name__
    name = "vision" if "ision" in kind.rpartition(".")[2] or "vision_model" in path else "text"
    paths = [f"{stack}.{child}" for child in modules[stack]._modules]
    embeddings = getattr(modules[path], "embeddings", None)
    prefix = None if name == "text" else 1 if hasattr(embeddings, "class_embedding") else 0
    blocks = tuple(Block(i, at, tuple(_block_sites(modules[at], at, name, i, prefix))) for i, at in enumerate(paths))
    stacked = tuple(modules[at] for at in paths)
    outer: list[Site] = list(_outer_sites(modules, path, name, paths))
    outer += _tokens(modules[path], name, path, stack, stacked, prefix)
    outer += _prompt(embeddings, name, path, stacked)
    outer += _features(modules, name, path)
    if name == "vision":
        outer += [parameters_site(m, "classifier", name="head", tower=name) for m in _classifiers(model)]
    width = int(modules[paths[0]].layer_norm1.normalized_shape[0])
    reasons = {"head": NO_HEAD, "tokens": NO_TOKENS, "prompt": NO_PROMPT, "features": NO_FEATURES}
    present = {site.name for site in outer}
    return Tower(name, width, blocks, tuple(outer), {k: v for k, v in reasons.items() if k not in present}, path)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    """Return the classifier of images that a model was built with, if it was."""
    classifier = model._modules.get("classifier")
    return [classifier] if classifier is not None and classifier._parameters else []


def _block_sites(block: Any, path: str, tower: str, layer: int, prefix: int | None) -> Iterator[Site]:
    location: dict[str, Any] = {"tower": tower, "layer": layer}
    width = int(block.layer_norm1.normalized_shape[0])
    for name, inner, norm in (("attn", "self_attn", "layer_norm1"), ("mlp", "mlp", "layer_norm2")):
        host, at = getattr(block, inner), f"{path}.{inner}"
        ends = {"entry": getattr(block, norm), "exit": host}
        yield BranchSite(name=name, path=at, host=host, host_path=at, width=width, prefix=prefix, **ends, **location)
    yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, prefix=prefix, **location)
    for inner, module in block.named_modules():
        at = f"{path}.{inner}"
        if is_linear(module):
            yield linear_site(site_name(inner), module, at, **location)
        elif is_norm(module):
            yield norm_site("norm", module, at, **location)


def _outer_sites(modules: dict[str, Any], root: str, tower: str, blocks: list[str]) -> Iterator[Site]:
    for path, module in modules.items():
        if not (not root or path.startswith(root + ".")) or any(path.startswith(block + ".") for block in blocks):
            continue
        if path.endswith("patch_embedding"):
            yield embed_site(module, path, tower=tower)
        elif is_multihead(module):
            for site in projection_sites(module, path, tower=tower, layer=None):
                yield replace(site, name=site.name.replace("attn.", "pool."))
        elif is_norm(module):
            yield norm_site("norm", module, path, tower=tower, layer=None)


def _tokens(
    root: Any, tower: str, path: str, stack: str, blocks: tuple[nn.Module, ...], prefix: int | None
) -> Iterator[SequenceSite]:
    embeddings: Any = getattr(root, "embeddings", None)
    patch = getattr(embeddings, "patch_size", None)
    if patch is None or prefix is None:
        return
    yield SequenceSite(
        name="tokens",
        path=f"{path}.tokens".lstrip("."),
        host=blocks[0],
        host_path=stack,
        tower=tower,
        width=int(embeddings.embed_dim),
        blocks=blocks,
        start=prefix,
        patch_area=int(patch) ** 2,
        extend=keep,
        norm=getattr(root, "pre_layrnorm", None),
    )


def _prompt(embeddings: Any, tower: str, path: str, blocks: tuple[nn.Module, ...]) -> Iterator[PromptSite]:
    """Yield the words; CLIP's texts have a start and an end, SigLIP's neither."""
    if not hasattr(embeddings, "token_embedding"):
        return
    marked = "clip." in type(embeddings).__module__
    at = f"{path}.embeddings.token_embedding".lstrip(".")
    yield PromptSite(
        name="prompt",
        path=f"{path}.prompt".lstrip("."),
        host=embeddings.token_embedding,
        host_path=at,
        tower=tower,
        width=int(embeddings.token_embedding.weight.shape[1]),
        blocks=blocks,
        start=1 if marked else 0,
        end_of_text=marked,
    )


def _features(modules: dict[str, Any], tower: str, path: str) -> Iterator[FeaturesSite]:
    """Yield the projected features: of CLIP's projection, or of SigLIP's pooling head."""
    parent = path.rpartition(".")[0]
    names = [f"{path}.head".lstrip("."), f"{parent}.{tower.replace('vision', 'visual')}_projection".lstrip(".")]
    at = next((name for name in names if name in modules), None)
    if at is not None:
        width = next(m.out_features for m in reversed(list(modules[at].modules())) if is_linear(m))
        paths: dict[str, Any] = {"path": f"{path}.features".lstrip("."), "host": modules[at], "host_path": at}
        channels = 3 if tower == "vision" else None
        yield FeaturesSite(name="features", width=width, model=modules[path], channels=channels, tower=tower, **paths)


def keep(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """Return a vision layer's arguments as they are: it has neither positions nor a mask to extend."""
    if arguments.get("attention_mask") is not None:
        raise ValueError("inserted tokens have no place in an attention mask: call the model without attention_mask")
    return arguments
