"""How a model's images were prepared in pretraining, whichever library says so, in timm's words."""

from __future__ import annotations

from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from mmpeft.optional import require


def preprocessing(model: nn.Module) -> dict[str, Any]:
    """Return ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_mode`` and ``crop_pct``.

    timm models say it in ``pretrained_cfg``, open_clip's in ``visual.preprocess_cfg``, those of transformers in the
    image processor that lies beside their weights. A module that holds one of these as ``backbone`` is asked there.

    Raises:
        ValueError: If the model says nothing, or its image processor can't be read or does something else.
    """
    for candidate in (model, getattr(model, "backbone", None)):
        if getattr(candidate, "pretrained_cfg", None):
            return resolve_model_data_config(candidate)
        config = getattr(getattr(candidate, "visual", None), "preprocess_cfg", None)
        if config:
            return _from_open_clip(config)
        if any(cls.__module__ == "transformers.modeling_utils" for cls in type(candidate).__mro__):
            return _from_transformers(candidate)
    raise ValueError(
        f"{type(model).__name__} has neither a pretrained_cfg nor visual.preprocess_cfg that says how images are "
        "prepared: give load_data a transform"
    )


def _from_open_clip(config: dict[str, Any]) -> dict[str, Any]:
    fits = {"shortest": "center", "squash": "squash"}
    if config["resize_mode"] not in fits:
        raise ValueError(
            f"visual.preprocess_cfg: resize_mode {config['resize_mode']!r} is not supported: give load_data a transform"
        )
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "input_size": (3, height, width),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": config["interpolation"],
        "crop_mode": fits[config["resize_mode"]],
        "crop_pct": 1.0,
    }


def _from_transformers(model: Any) -> dict[str, Any]:
    transformers = require("transformers", "mmpeft[clip]")
    try:
        revision = getattr(model.config, "_commit_hash", None)
        processor = transformers.AutoImageProcessor.from_pretrained(model.name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{type(model).__name__} of {model.name_or_path!r}: no image processor could be read that says how images "
            f"are prepared ({reason}): give load_data a transform"
        ) from error
    said = processor.to_dict()
    size, crop = _given(said["size"]), _given(said.get("crop_size")) if said.get("do_center_crop") else {}
    if {"height", "width"} <= size.keys() and not crop:
        shape, fit = (size["height"], size["width"]), {"crop_mode": "squash", "crop_pct": 1.0}
    elif "shortest_edge" in size and {"height", "width"} <= crop.keys():
        shape = (crop["height"], crop["width"])
        fit = {"crop_mode": "center", "crop_pct": min(shape) / size["shortest_edge"]}
    else:
        raise ValueError(
            f"{type(model).__name__} of {model.name_or_path!r}: its image processor resizes to {size} and crops to "
            f"{crop or 'nothing'}, which is not supported: give load_data a transform"
        )
    names = {2: "bilinear", 3: "bicubic"}
    normalisation = {"mean": tuple(said["image_mean"]), "std": tuple(said["image_std"])}
    return {"input_size": (3, *shape), "interpolation": names[int(said["resample"])], **normalisation, **fit}


def _given(sizes: Any) -> dict[str, int]:
    return {name: value for name, value in dict(sizes or {}).items() if value is not None}
