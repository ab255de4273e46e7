"""Directories that are replaced whole or not at all, and the JSON in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mmpeft.files import complete, synchronise
from mmpeft.formats.tensor_file import MOST, described_problems
from mmpeft.locks import locked
from mmpeft.settings import ConfigError, Settings

MANIFEST, CONFIG, WEIGHTS = "mmpeft.json", "adapter_config.json", "adapter_model.safetensors"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
LARGEST_JSON = 16 * 2**20
"""Bytes; a model of 10,000 sites needs a tenth of it."""

AnySettings = TypeVar("AnySettings", bound=Settings)
Read = TypeVar("Read")
PATIENCE = 60.0
"""Seconds that a writer waits for another one."""
ATTEMPTS = 20
"""How often a directory is read that others replace meanwhile."""


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill; at the end it takes the place of ``path``, unless the block raises.

    At any moment, even after a kill or a power cut, ``path`` is the old directory, the new one, or (for the instant
    between two renames) the old one under another name, where ``standing`` finds it. One writer at a time: others wait.
    Whatever is not a file of ours there is an error: it would be lost.
    """
    with _written(path, _refuse_others) as partial:
        yield partial


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill; it gets the name ``path``, so far unused, at the end, unless the block raises."""
    with _written(path, _refuse_any) as partial:
        yield partial


@contextmanager
def _written(path: Path, refuse: Callable[[Path], None]) -> Iterator[Path]:
    path = path.resolve()
    refuse(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, PATIENCE):
        settle(path)
        refuse(path)
        partial = _sibling(path, "partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            complete(partial)
            if path.exists():
                path.rename(_sibling(path, "previous"))
            partial.rename(path)
            synchronise(path.parent)
        finally:
            settle(path)
            shutil.rmtree(partial, ignore_errors=True)


def settle(path: Path) -> None:
    """Finish a replacement that was cut short: bring the old directory back, or remove it when the new one is there.

    For writers alone: a reader that did this would take the directory from under one.
    """
    previous = _sibling(path, "previous")
    if not path.exists() and previous.exists():
        previous.rename(path)
    shutil.rmtree(previous, ignore_errors=True)


def standing(path: Path) -> Path:
    """Return where the files of a directory are, which between two renames is the other name of the old one."""
    previous = _sibling(path.resolve(), "previous")
    return previous if previous.exists() and not path.exists() else path


def read_steadily(directory: Path, read: Callable[[Path], Read]) -> Read:
    """Return what is read from a directory, all of it from the old one or from the new one if it is being replaced."""
    for _ in range(ATTEMPTS):
        current = standing(directory)
        before = _identity(current)
        try:
            content = read(current)
        except (OSError, ValueError):
            if before is not None and before == _identity(current):
                raise
        else:
            if before == _identity(current):
                return content
    return read(directory)


def weights_in(directory: Path) -> Path:
    """Return the weights file of an adapter directory; none, or only a pickle, is an error that says what to do."""
    directory = standing(directory)
    if directory.is_file():
        raise ValueError(f"{directory} is a file: give the directory that holds {WEIGHTS}{_pickle_advice([directory])}")
    if not directory.is_dir():
        raise FileNotFoundError(f"no adapter directory {str(directory)!r}")
    if (directory / WEIGHTS).is_file():
        return directory / WEIGHTS
    inside = sorted(directory.iterdir())
    adapters = [entry.name for entry in inside if (entry / WEIGHTS).is_file()]
    advice = f"; its directories {adapters} do" if adapters else _pickle_advice(inside)
    raise ValueError(f"{directory} holds no {WEIGHTS}{advice}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON for people to read."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; too big or broken is a ValueError."""
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}")
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, more than the {LARGEST_JSON} that are read")
    return parsed_object(str(path), path.read_bytes())


def parsed_object(source: str, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text; anything else is a ValueError that names where the text is from."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{source}: {type(content).__name__}, expected a JSON object")
    return content


def validated(path: Path | str, content: dict[str, Any], model: type[AnySettings]) -> AnySettings:
    """Return content as settings; all its problems are one ConfigError that names the file, or whatever it is of."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = described_problems(error)
        more = [f"and {len(lines) - MOST:,} more"] if len(lines) > MOST else []
        raise ConfigError(str(path), [*lines[:MOST], *more]) from None


def _refuse_any(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another")


def _refuse_others(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file: an adapter is saved as a directory")
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in (MANIFEST, CONFIG, WEIGHTS))
    if others:
        raise FileExistsError(f"{path} holds {', '.join(others[:5])}, and would be replaced whole: choose another")


def _pickle_advice(files: list[Path]) -> str:
    pickles = [file.name for file in files if file.suffix in PICKLES]
    if not pickles:
        return ""
    return (
        f". {pickles[0]} is a pickle, which can run any code, and is never read: where you trust it, convert it with "
        "peft's PeftModel.from_pretrained(base, directory).save_pretrained(other_directory); a paper's checkpoint is "
        "imported without running it (mmpeft import --help)"
    )


def _sibling(path: Path, word: str) -> Path:
    return path.parent / f".{path.name}.{word}"


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a directory from a later one of the same name."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
