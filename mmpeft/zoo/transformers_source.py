"""Models of Hugging Face transformers: ``hf/OWNER/NAME``, of the class that its configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.kernels.private_names import built, class_for
from mmpeft.optional import require
from mmpeft.zoo.hub import fetching
from mmpeft.zoo.request import Request


def load(request: Request) -> nn.Module:
    """Build a transformers model; code from the hub is never run, and weights are read from safetensors only.

    The class is the one named in the model's own config; with ``num_classes`` it is the classifier of its family, of
    images or of texts, and with the task ``question_answering`` the one that points at answers.

    Raises:
        ValueError: If the model can't be fetched, needs code that is not part of transformers, or a checkpoint has no
            weights for a part that is no head.
        ImportError: If transformers is not installed.
    """
    transformers = require("transformers", "mmpeft[llm]")
    request.refuse("image_size")
    where: dict[str, Any] = {"revision": request.revision or "main", "trust_remote_code": False}
    with fetching(f"hf/{request.name}"):
        config = transformers.AutoConfig.from_pretrained(request.name, **where)
        if request.num_classes is not None:
            config.num_labels = request.num_classes
        elif request.task is not None:
            config.num_labels = 2  # a start and an end
        kind = _class_of(transformers, config, request)
        if request.with_weights:
            where |= {"use_safetensors": True, "ignore_mismatched_sizes": request.fresh_head, **request.options}
            if request.fresh_head:
                return _load_headed(transformers, kind, config, request, where).to(request.device).eval()
            return kind.from_pretrained(request.name, config=config, **where).to(request.device).eval()
    with torch.device(request.device):
        return built(kind, config, **request.options).eval()


def _class_of(transformers: Any, config: Any, request: Request) -> Any:
    if request.num_classes is not None:
        return _classifier_of(transformers, config, request)
    if request.task is not None:
        return _reader_of(transformers, config, request)
    if not config.architectures:
        return class_for(transformers.AutoModel, config)
    name = config.architectures[0]
    if not hasattr(transformers, name):
        raise ValueError(
            f"model 'hf/{request.name}': class {name} is not part of transformers; remote code is never run"
        )
    return getattr(transformers, name)


def _classifier_of(transformers: Any, config: Any, request: Request) -> Any:
    for kind in (transformers.AutoModelForImageClassification, transformers.AutoModelForSequenceClassification):
        if (model := class_for(kind, config)) is not None:
            return model
    raise ValueError(
        f"model 'hf/{request.name}': transformers has no classifier for {config.model_type}, so no "
        f"num_classes={request.num_classes!r}"
    )


def _reader_of(transformers: Any, config: Any, request: Request) -> Any:
    kind = class_for(transformers.AutoModelForQuestionAnswering, config)
    if kind is None:
        raise ValueError(
            f"model 'hf/{request.name}': transformers has no model for {config.model_type} that points at answers, "
            f"so no task={request.task!r}"
        )
    return kind


def _load_headed(transformers: Any, kind: Any, config: Any, request: Request, where: dict[str, Any]) -> Any:
    """Load a model with a new head; all of it below the head comes from the checkpoint.

    Some classes name the part below the head otherwise than the rest of their family (``transformer`` and not ``model``
    in Llama's for question answering), and transformers then leaves it random: it is loaded by itself here.
    """
    model, info = kind.from_pretrained(request.name, config=config, output_loading_info=True, **where)
    below = f"{model.base_model_prefix}."
    missing = sorted(name for name in info["missing_keys"] if name.startswith(below))
    if missing and len(missing) == sum(name.startswith(below) for name in model.state_dict()):
        base = class_for(transformers.AutoModel, config)
        body, info = base.from_pretrained(request.name, config=config, output_loading_info=True, **where)
        setattr(model, model.base_model_prefix, body)
        missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"model 'hf/{request.name}': the checkpoint has no weights for {', '.join(missing[:3])}, which "
            f"{kind.__name__} has below its head: they would be random each time; load it by transformers once, and "
            "save it with them"
        )
    return model


class Tokenizer:
    """A transformers tokenizer that is called as open_clip's are."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Return token ids (texts, context length), padded, and cut where a text is longer."""
        texts = [texts] if isinstance(texts, str) else [*texts]
        how = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        ids: Tensor = self.tokenizer(texts, return_tensors="pt", **how)["input_ids"]
        return ids


def load_tokenizer(request: Request) -> Any:
    """Return the model's own tokenizer; that of two towers (CLIP, SigLIP) as a `Tokenizer`.

    Raises:
        ValueError: If it can't be fetched, or the model has no texts.
        ImportError: If transformers is not installed.
    """
    transformers = require("transformers", "mmpeft[llm]")
    where: dict[str, Any] = {"revision": request.revision or "main", "trust_remote_code": False}
    with fetching(f"hf/{request.name}"):
        config = transformers.AutoConfig.from_pretrained(request.name, **where)
        if not hasattr(config, "text_config") and not hasattr(config, "vocab_size"):
            raise ValueError(f"model 'hf/{request.name}' ({config.model_type}) has no text tower, so no tokenizer here")
        tokenizer = transformers.AutoTokenizer.from_pretrained(request.name, **where)
    if class_for(transformers.AutoModelForZeroShotImageClassification, config) is not None:
        return Tokenizer(tokenizer, int(config.text_config.max_position_embeddings))
    return tokenizer
