"""``mmpeft export`` and ``import``: adapters from and to other libraries' formats."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from mmpeft import formats
from mmpeft.cli.run import finished, verb
from mmpeft.cli.shipped import new_path
from mmpeft.configuration.document import Document
from mmpeft.settings import ConfigError


def export(options: Namespace) -> None:
    """Write one of our adapters in another library's format, or the class embeddings of a run."""
    dest = new_path(options.dest)
    notes: list[str] = []
    if options.format == "class_embeddings":
        if options.base is not None:
            raise ValueError(f"--base {options.base!r}: the run names its model itself")
        notes = _export_classes(options.adapter, dest)
    else:
        formats.export(Path(options.adapter), dest, options.format, base=_base(options))
    print("\n".join([f"{options.adapter} as {options.format}: {options.dest}", *notes]))


def _export_classes(run: str, dest: Path) -> list[str]:
    from mmpeft.formats.serving.class_embeddings import save_class_embeddings
    from mmpeft.heads.class_embeddings import embeddings_of
    from mmpeft.heads.zero_shot import ZeroShotClassifier

    if dest.suffix != ".safetensors":
        raise ValueError(f"DEST {str(dest)!r}: must end in .safetensors")
    task, config = finished(run)
    model = verb(task, config, "load_adapted")(config).model
    if not isinstance(model, ZeroShotClassifier):
        raise ValueError(f"RUN {run!r}: its {type(model).__name__} does not classify by the texts of the classes")
    embeddings, notes = embeddings_of(model)
    save_class_embeddings(embeddings, dest)
    return notes


def import_adapter(options: Namespace) -> None:
    """Write another library's adapter, or a paper's checkpoint, as one of ours, and say what was assumed."""
    document = Document("--options")
    for assignment in options.options:
        document.override(assignment)
    if document.problems:
        raise ConfigError(document.title, document.problems)
    dest, base = new_path(options.dest), _base(options)
    notes = formats.convert(Path(options.source), dest, options.format, base=base, **document.data)
    print("\n".join([f"{options.source} as mmpeft: {options.dest}", *notes]))


def _base(options: Namespace) -> Any:
    if options.base is None:
        return None
    from mmpeft.zoo import load_model

    return load_model(options.base)
