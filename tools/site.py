"""Pages of the documentation site that are made and not written: the hooks that ``mkdocs.yml`` names.

The README is the first page, and the API reference is made of the public names: one that stands in no section of
``SECTIONS`` and is no method stops the build.
"""

from __future__ import annotations

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import mmpeft
from mmpeft.methods.base import Method

ROOT = Path(__file__).parents[1]
WRITTEN_ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
}
"""Pages of the site that stand outside of docs/."""
SECTIONS = {
    "Adapt a model": ("adapt", "adapters", "Adapters", "load"),
    "Models": ("load_model", "zero_shot", "quantize", "anatomy", "register_reader"),
    "How it runs": ("use_attention", "use_memory"),
    "What a method is given": ("ControlImage", "ImagePrompt"),
    "The registry": ("methods", "Method"),
}
"""The public names that are no methods."""


class FolderOfMethods(griffe.Extension):
    """Lets the reference see the folder ``mmpeft/methods``, which the function of that name in the stub would hide."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Take the function out of the stub."""
        if mod.path == "mmpeft" and str(mod.filepath).endswith(".pyi"):
            mod.del_member("methods")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere and those of the reference."""
    for source, page in WRITTEN_ELSEWHERE.items():
        files.append(File.generated(config, page, content=linked((ROOT / source).read_text(), source)))
    files.append(File.generated(config, "reference/index.md", content=reference()))
    files.append(File.generated(config, "reference/methods.md", content=methods()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links of docs/ that leave it end at the page that stands for the file."""
    if page.file.src_uri in WRITTEN_ELSEWHERE.values() or page.file.src_uri.startswith("reference/"):
        return markdown
    return linked(markdown, f"docs/{page.file.src_uri}")


def linked(text: str, source: str) -> str:
    """Return a text whose links to files of the repository lead to the pages of these, seen from ``source``'s page.

    A link to a file that is no page becomes plain text.
    """
    here = WRITTEN_ELSEWHERE.get(source, source.removeprefix("docs/"))

    def target(match: re.Match[str]) -> str:
        label, link = match.groups()
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", path) or not path:
            return match[0]
        file = (ROOT / source).parent.joinpath(path).resolve().relative_to(ROOT).as_posix()
        if file not in WRITTEN_ELSEWHERE and not file.startswith("docs/"):
            return label
        page = WRITTEN_ELSEWHERE.get(file, file.removeprefix("docs/"))
        return f"[{label}]({'../' * here.count('/')}{page}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", target, text)


def reference() -> str:
    """Return the page of all public names that are no methods."""
    names = {name for section in SECTIONS.values() for name in section}
    without = sorted(set(mmpeft.__all__) - names - {method.__name__ for method in mmpeft.methods().values()})
    if without:
        raise PluginError(f"public names without a page: {', '.join(without)}; add them to SECTIONS in tools/site.py")
    lines = ["# Reference", "", "Every public name. The [methods](methods.md) have a page of their own.", ""]
    for title, section in SECTIONS.items():
        lines += [f"## {title}", ""]
        lines += [f"::: {home(getattr(mmpeft, name))}\n    options: {{heading_level: 3}}\n" for name in section]
    return "\n".join(lines)


def methods() -> str:
    """Return the page of all methods, with their options."""
    lines = ["# Methods", "", "Every method with its options, by its name in configurations.", ""]
    for name, method in mmpeft.methods().items():
        lines += [
            f"::: {home(method)}",
            f"    options: {{heading: '{method.__name__}: {name}', toc_label: {name}, members: false}}",
        ]
        lines += [
            "",
            "| option | type | default | what it is |",
            "|---|---|---|---|",
            *map(partial(option, method), method.model_fields),
            "",
        ]
    return "\n".join(lines)


def option(method: type[Method], name: str) -> str:
    """Return one option of a method as the row of a table; where a variant says nothing, its family does."""
    field = method.model_fields[name]
    kinds = (kind for kind in method.__mro__ if issubclass(kind, BaseModel) and name in kind.model_fields)
    said = next((text for kind in kinds if (text := kind.model_fields[name].description)), "")
    default = "needed" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
    cells = (f"`{name}`", f"`{inspect.formatannotation(field.annotation).replace('typing.', '')}`", default, said)
    return f"| {' | '.join(cell.replace(' | ', ' or ') for cell in cells)} |"


def home(thing: Any) -> str:
    """Return the full name of a public object, where its source stands."""
    if inspect.ismodule(thing):
        return thing.__name__
    return f"{thing.__module__}.{thing.__qualname__}"
