"""`zero_shot`: a classifier of a two-tower model and class names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mmpeft.heads.zero_shot import TEMPLATE, Tokenizer, ZeroShotClassifier
from mmpeft.zoo.entrance import load_model, load_tokenizer


def zero_shot(
    model: nn.Module | str,
    classes: Sequence[str],
    *,
    templates: Sequence[str] = (TEMPLATE,),
    tokenizer: Tokenizer | str | None = None,
) -> ZeroShotClassifier:
    """Return a classifier of images by the texts of its classes, in evaluation mode; ``.backbone`` is the model itself.

    Args:
        model: An open_clip model, a CLIP or SigLIP of transformers, or a name for ``load_model``.
        classes: The names of the classes.
        templates: Texts with a place ``{}`` for the name; several are averaged (prompt ensembling).
        tokenizer: Turns a list of texts into ids (texts, length), or the name of a model whose tokenizer does; by
            default that of the model's name.

    Raises:
        ValueError: If the model has no joint space, a template no place, or no tokenizer is known.
    """
    source = tokenizer if tokenizer is not None else model
    if isinstance(source, nn.Module):
        raise ValueError("tokenizer: give one (texts -> ids), or the name of the model whose tokenizer it is")
    words = load_tokenizer(source) if isinstance(source, str) else source
    backbone = load_model(model) if isinstance(model, str) else model
    return ZeroShotClassifier(backbone, classes, templates, words).eval()
