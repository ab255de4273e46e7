"""``mmpeft list``: what there is, one line each."""

from __future__ import annotations

from argparse import Namespace

from mmpeft.cli.console import print_table
from mmpeft.cli.shipped import configs, first_comment, tasks
from mmpeft.methods import registry


def show_list(options: Namespace) -> None:
    """Print the list that the user asked for."""
    rows = {"methods": _methods, "tasks": _tasks, "models": _models, "configs": _configs}[options.what]()
    print_table([options.what.removesuffix("s"), "what it is"], rows)


def _methods() -> list[list[str]]:
    return [[name, _summary(method)] for name, method in sorted(registry().items())]


def _tasks() -> list[list[str]]:
    return [[name, first_comment(path)] for name, path in tasks().items()]


def _configs() -> list[list[str]]:
    return [[name, first_comment(path)] for name, path in configs().items()]


def _summary(subject: object) -> str:
    return (subject.__doc__ or "").strip().partition("\n")[0]
