"""The one entrance to every library's models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from mmpeft.settings import nearest
from mmpeft.zoo import diffusers_source, local_source, open_clip_source, timm_source, tiny, transformers_source
from mmpeft.zoo.cards import find_card
from mmpeft.zoo.request import Request

SOURCES: dict[str, Callable[[Request], Any]] = {
    "timm": timm_source.load,
    "open_clip": open_clip_source.load,
    "hf": transformers_source.load,
    "diffusers": diffusers_source.load,
    "tiny": tiny.load,
}
"""Each library by the first word of a model's name."""
TOKENIZERS: dict[str, Callable[[Request], Any]] = {
    "open_clip": open_clip_source.load_tokenizer,
    "hf": transformers_source.load_tokenizer,
    "tiny": lambda request: tiny.load_tokenizer(find_card(request.name)),
}


def load_model(
    source: str,
    *,
    num_classes: int | None = None,
    task: Literal["question_answering"] | None = None,
    image_size: int | None = None,
    pretrained: bool = True,
    device: str = "cpu",
    **options: Any,
) -> nn.Module | Any:
    """Return a library's own model object, in evaluation mode; nothing of ours is wrapped around it.

    Args:
        source: ``timm/NAME.TAG``, ``open_clip/ARCH/PRETRAINED``, ``hf/OWNER/NAME``, ``diffusers/OWNER/NAME``,
            ``tiny/vit|clip|sd|llm``, or a local path (``./model``, ``~/model``, ``/models/it``). ``timm/NAME/PATH`` and
            ``open_clip/ARCH/PATH`` take the weights of a local checkpoint, safetensors or torch.save. ``@REVISION`` at
            the end pins a revision on the hub.
        num_classes: Replaces the classification head by a freshly initialised one with so many outputs.
        task: Of a language model of transformers: a freshly initialised head that points at the two ends of an answer.
        image_size: Height and width of the input images, where the architecture allows it.
        pretrained: Whether weights are loaded.
        device: Where the model is built. On ``meta`` nothing but configurations is read: for looking at big models.
        **options: Passed on to the library's constructor.

    Raises:
        ValueError: If the name is unknown (near alternatives are given), can't be fetched, or doesn't fit its weights.
        ImportError: If the library isn't installed; the message says which extra to install.
    """
    how: dict[str, Any] = {"num_classes": num_classes, "task": task, "image_size": image_size, "pretrained": pretrained}
    library, request = _read(source, **how, device=device, options=options)
    return local_source.load(request) if library is None else SOURCES[library](request)


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a model that reads texts, named as for `load_model`.

    Of a language model it is transformers' own tokenizer, with its chat template. Of a model with an image and a text
    tower it takes a list of texts and returns their token ids (texts, context length); texts that are longer than the
    model can read are cut, as open_clip and transformers do it.

    Raises:
        ValueError: If the model reads no texts, or its tokenizer can't be fetched.
        ImportError: If the library isn't installed; the message says which extra to install.
    """
    library, request = _read(source)
    if library is None:
        return local_source.load_tokenizer(request)
    if library not in TOKENIZERS:
        raise ValueError(f"model {source!r}: {library} has no tokenizers here, only {', '.join(sorted(TOKENIZERS))}")
    return TOKENIZERS[library](request)


def _read(source: str, **how: Any) -> tuple[str | None, Request]:
    """Split a model's name into its library (None for a local path) and the request to it."""
    if source.startswith(("/", "./", "../", "~")) or source in (".", ".."):
        return None, Request(str(Path(source).expanduser()), **how)
    library, _, rest = source.partition("/")
    if library not in SOURCES:
        hint = "; a local path starts with ./ or /" if Path(source).exists() else ""
        raise ValueError(f"model {source!r}: no library {library!r}{nearest(library, SOURCES)}{hint}")
    name, _, revision = rest.partition("@")
    if not name:
        raise ValueError(f"model {source!r}: nothing follows {library!r}")
    return library, Request(name, revision or None, **how)
