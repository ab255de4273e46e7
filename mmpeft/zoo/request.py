"""What is asked of a library: a model's name, a revision, and how to build it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """A model by its name within one library."""

    name: str
    """The name after the library's, without the revision: ``vit_base_patch16_224.augreg_in21k``."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    num_classes: int | None = None
    """Classes of a freshly initialised head; None keeps the checkpoint's own."""
    task: str | None = None
    """Of a language model the task that it gets a freshly initialised head for: ``question_answering``."""
    image_size: int | None = None
    """Height and width of the input images; None keeps the checkpoint's own."""
    pretrained: bool = True
    """Whether weights are loaded; without, the model is initialised randomly."""
    device: str = "cpu"
    """Where the model is built; on ``meta`` it has shapes but no weights, and nothing is downloaded but its config."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments for the library's own constructor."""

    def split_path(self) -> tuple[str, Path | None]:
        """Return the architecture and, of ``ARCH/PATH``, the local file of its weights: ./ ../ ~ or / begin a path."""
        architecture, _, rest = self.name.partition("/")
        local = rest.startswith(("/", "./", "../", "~"))
        return (architecture, Path(rest).expanduser()) if local else (self.name, None)

    @property
    def with_weights(self) -> bool:
        """Whether weights are read."""
        return self.pretrained and self.device != "meta"

    @property
    def fresh_head(self) -> bool:
        """Whether the head is not the checkpoint's own."""
        return self.num_classes is not None or self.task is not None

    def refuse(self, *names: str) -> None:
        """Refuse settings that have no meaning for this library.

        Raises:
            ValueError: If one of these fields was given.
        """
        given = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) is not None]
        if given:
            raise ValueError(f"{', '.join(given)} can't be applied to model {self.name!r}")


def fetch_error(source: str, error: Exception) -> ValueError:
    """Return the error to raise when a hub did not give a model."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(
        f"model {source!r} could not be fetched: {lines[0]} (offline? Give a local path, or tiny/vit, which is shipped)"
    )
