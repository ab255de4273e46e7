"""What is known of a method beside its formula; it stands with the method, and tests hold the method to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VIT_B = "vit_base_patch16_224"


@dataclass(frozen=True)
class Published:
    """How many parameters a method trains on a model of full size, as its authors or another library say.

    ``model`` is a name of timm or open_clip, or a language model of ``tests/language_configurations.py``; with
    ``classes`` it has a task head for these, which is counted too.
    """

    model: str
    trainable: int
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 0
    source: str = "the paper, its formula, or HF peft"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What tests assert of a method; models are those of ``tests/tiny_models.py`` or kinds of these."""

    start: str = ""
    """Why a model is not the frozen one right after ``adapt``; empty where it is, to the bit."""
    merges: bool = False
    """Whether the adapter can be written into the weights of a model."""
    inserts: bool = False
    """Whether the sequence becomes longer: such an adapter has no weight but 1, and no sample of a batch is without."""
    replaces: bool = False
    """Whether it stands in the place of what was there: of several adapters the last one is seen."""
    composed: bool = False
    """Whether it is put together of other methods, which are tried on every model."""
    lacks: tuple[str, ...] = ()
    """Models that have no site for it."""
    unroutable: tuple[str, ...] = ()
    """Models where samples of one batch can't have different adapters: a module that holds others is changed, or what
    is computed once for all samples."""
    small: Mapping[str, Any] = field(default_factory=dict)
    """Options that fit models of width 32; the method's defaults where nothing is said."""
    learns: Mapping[str, Any] = field(default_factory=dict)
    """Options with which thirty steps are enough to learn something."""
    rate: float = 1e-2
    """The learning rate of these steps."""
    published: tuple[Published, ...] = ()
    """Numbers of trainable parameters."""
    tested_by: str = ""
    """The file of tests that has the method, where it needs more than a model: conditions, or other adapters in it."""
