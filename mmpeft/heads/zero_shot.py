"""A classifier made of a two-tower model and class names: the baseline that every method on CLIP starts from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.anatomy import Anatomy
from mmpeft.anatomies.headed import Headed
from mmpeft.anatomies.hosts import parameter
from mmpeft.anatomies.reading import anatomy
from mmpeft.anatomies.sites import LogitsSite, PromptSite, Site
from mmpeft.edits import ConditionalPrompt, Prompt
from mmpeft.handle.adapters import Adapters
from mmpeft.injection.tree import Tree
from mmpeft.kernels.scoped import within

Tokenizer = Callable[[list[str]], Tensor]
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, eq=False)
class Remembered:
    """Class embeddings, and what they were made of: tensors with the number of changes made to each in place."""

    weight: Tensor
    setting: tuple[Any, ...]
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def holds(self, setting: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> bool:
        """Whether nothing has changed since."""
        same = len(tensors) == len(self.tensors) and all(map(operator.is_, tensors, self.tensors))
        return same and setting == self.setting and versions_of(tensors) == self.versions


def versions_of(tensors: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Return how often each tensor was changed in place."""
    return tuple(tensor._version for tensor in tensors)


class CosineHead(nn.Module):
    """``scale cos(f, w_c)``: logits (batch, classes) of features f (batch, width) and class embeddings w."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, features: Tensor, scale: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the logits; ``weight`` (classes, width), or (batch, classes, width), stands in for the head's own."""
        features = F.normalize(features, dim=-1)
        weight = F.normalize(self.weight if weight is None else weight, dim=-1).to(features.dtype)
        if weight.ndim == 2:
            return scale * (features @ weight.T)
        return scale * torch.einsum("bd,bcd->bc", features, weight)


class ZeroShotClassifier(Headed):
    """Images (batch, 3, height, width) to logits (batch, classes) by the texts of the classes (Radford et al. 2021).

    The class embeddings are the normalised mean over ``templates`` of the normalised text features, computed once and
    kept in the head; while an active adapter touches the text tower they are computed in every pass. An adapter that
    learns words brings its own template.
    """

    head: CosineHead

    def __init__(
        self, backbone: nn.Module, classes: Sequence[str], templates: Sequence[str], tokenizer: Tokenizer
    ) -> None:
        super().__init__()
        joint = anatomy(backbone).joint
        if joint is None:
            raise ValueError(f"model: {type(backbone).__name__} has no towers of images and text in one space")
        if "mmpeft" in backbone._modules:
            raise ValueError("model: it carries adapters already: load them into the classifier of the bare model")
        _check_texts(classes, templates)
        self.backbone, self.joint, self.tokenizer = backbone, joint, tokenizer
        self.classes, self.templates = tuple(classes), tuple(templates)
        self._ids: dict[tuple[str, ...], Tensor] = {}
        self._known: Remembered | None = None
        with torch.no_grad():
            self.head = CosineHead(self._embed(None))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what training may do to the weights past torch's count of changes, evaluation sees anew."""
        self._known = None
        return super().train(mode)

    @torch.no_grad()
    def reset(self) -> None:
        """Compute the head's class embeddings anew, from the text tower as it is without adapters."""
        self._known = None
        with Adapters({"": self}).off():
            self.head.weight.data = self._embed(None)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        features = self.joint.image(images)
        tree = self._modules.get("mmpeft")
        weight = None
        if isinstance(tree, Tree) and tree.touched - {"vision", "task"}:
            routed = tree.routes and not tree.merged
            weight = self._routed(features, tree) if routed else self._remembered(features, tree)
        return self.head(features, self.joint.scale(), weight)

    def class_embeddings(self) -> Tensor:
        """Return the normalised class embeddings (classes, width), with the active adapters on the text tower."""
        tree = self._modules.get("mmpeft")
        if not isinstance(tree, Tree) or not tree.touched - {"vision", "task"}:
            return F.normalize(parameter(self.head, "weight"), dim=-1)
        if _moves(tree):
            raise ValueError("class_embeddings: the active adapter's class embeddings are other ones for each image")
        return self._embed(None)

    def head_sites(self) -> tuple[Site, ...]:
        """Return the sites of the head: its parameters, and the logits."""
        classes, width = self.head.weight.shape
        address: dict[str, Any] = {"path": "task.logits", "host": self.head, "host_path": "task", "tower": "task"}
        parameters = (replace(site, derived=True) for site in self.parameter_sites())
        return (*parameters, LogitsSite(name="logits", width=width, classes=classes, **address))

    def complete(self, anatomy: Anatomy) -> Anatomy:
        """Add what the tokenizer knows: the words, and where the first one stands."""
        start = self._compared("a")[2]

        def placed(site: Site) -> Site:
            return replace(site, start=start) if isinstance(site, PromptSite) else site

        towers = (replace(tower, sites=tuple(map(placed, tower.sites))) for tower in anatomy.towers)
        return replace(anatomy, words=self.words, towers=tuple(towers))

    def words(self, text: str) -> tuple[int, ...]:
        """Return the ids of the words of a text, without those that every text has in front and behind."""
        ids, empty, start = self._compared(text)
        return tuple(takewhile(lambda number: number != empty[start], ids[start:]))

    def _compared(self, text: str) -> tuple[list[int], list[int], int]:
        """Return the ids of a text, those of none, and the place of the first word: the first where they differ."""
        ids, empty = self.tokenizer([text, ""]).tolist()
        pairs = enumerate(zip(ids, empty, strict=True))
        first = next((position for position, (token, of_none) in pairs if token != of_none), len(ids))
        return ids, empty, first

    def _remembered(self, features: Tensor, tree: Tree) -> Tensor:
        """Return the class embeddings; in evaluation those of the last pass, when no adapter weight has changed."""
        moving = _moves(tree)
        tensors = (*tree.parameters(), *tree.buffers())
        fixed = not (moving or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        if not fixed or any(tensor.is_inference() for tensor in tensors):
            return self._embed(features if moving else None)
        setting = (tuple(tree.active.items()), features.dtype, features.device)
        if self._known is None or not self._known.holds(setting, tensors):
            self._known = Remembered(self._embed(None), setting, tensors, versions_of(tensors))
        return self._known.weight

    def _routed(self, features: Tensor, tree: Tree) -> Tensor:
        """Return the class embeddings (batch, classes, width) of each sample's adapter."""
        weight = self.head.weight.expand(len(features), -1, -1)
        for name, route in tree.routes.items():
            rows = route.rows(len(features))
            with within(tree.chosen({name: 1.0})):
                adapted = tree.touched - {"vision", "task"}
                embeddings = self._embed(features[rows] if _moves(tree) else None) if adapted else self.head.weight
            weight = weight.index_copy(0, rows, embeddings.expand(len(rows), -1, -1).to(weight.dtype))
        return weight

    def _embed(self, images: Tensor | None) -> Tensor:
        """Return class embeddings (classes, width), or (images, classes, width) where they depend on the image."""
        ids = self._texts()
        count = 1 if images is None else len(images)
        embeddings = F.normalize(self.joint.text(ids.repeat(count, 1)), dim=-1)
        embeddings = F.normalize(embeddings.unflatten(0, (count, -1, len(self.classes))).mean(1), dim=-1)
        return embeddings[0] if images is None else embeddings

    def _texts(self) -> Tensor:
        """Return the ids of all texts (templates x classes, length), by the templates of the active adapters."""
        tree = self._modules.get("mmpeft")
        edits = tree.active_edits() if isinstance(tree, Tree) else ()
        templates = tuple(dict.fromkeys(edit.template for edit in edits if isinstance(edit, Prompt)))
        if len(templates) > 1:
            raise ValueError(f"the active adapters replace words of different texts: {list(templates)}")
        return self._tokens(templates or self.templates).to(next(self.backbone.parameters()).device)

    @torch.compiler.assume_constant_result
    def _tokens(self, templates: tuple[str, ...]) -> Tensor:
        if templates not in self._ids:
            texts = [template.format(name) for template in templates for name in self.classes]
            self._ids[templates] = self._tokenized(texts)
        return self._ids[templates]

    def _tokenized(self, texts: list[str]) -> Tensor:
        """Return the ids of texts (texts, length); one that is cut off at the text tower's length is an error."""
        ids, empty = self.tokenizer(texts), self.tokenizer([""])[0]
        full = (ids[:, -1] != empty[-1]) | ~torch.isin(ids[:, -2], empty)
        for row, text in ((ids[index], texts[index]) for index in full.nonzero().flatten().tolist()):
            shorter = text[:-1] if self.words(text[-1]) else text.rpartition(" ")[0]
            if torch.equal(self.tokenizer([shorter])[0], row):
                raise ValueError(
                    f"the text {text!r} is cut off at the text tower's {len(row)} tokens: shorten the templates, the "
                    "names of the classes or the learned tokens"
                )
        return ids


def _moves(tree: Tree) -> bool:
    """Whether the class embeddings depend on the image."""
    return any(isinstance(edit, ConditionalPrompt) for edit in tree.active_edits())


def _check_texts(classes: Sequence[str], templates: Sequence[str]) -> None:
    for key, texts in (("classes", classes), ("templates", templates)):
        if isinstance(texts, str):
            raise ValueError(f"{key}: {texts!r} is one text: give a list")
    if not classes:
        raise ValueError("classes: none given")
    if not templates or any(set("{}") & set(text.replace("{}", "", 1)) or "{}" not in text for text in templates):
        raise ValueError(f"templates: {list(templates)}: each needs one place {{}} for the name of a class")
