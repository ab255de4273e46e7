"""Every command in one table. Handlers are named, not imported, so that ``--help`` loads nothing."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass

from mmpeft.formats import readable, writable

CONFIG = ("config", "a YAML file, or the name of a shipped one (mmpeft list configs)")
RUN = ("run", "a run directory: it holds config.yaml and adapter/")
MODEL = ("model", "such as timm/vit_base_patch16_224.augreg_in21k, tiny/vit or a local path (mmpeft list models)")
ADAPTER = ("adapter", "a directory that holds an adapter")
OVERRIDES = ("overrides", "dotted keys with YAML values, such as train.lr=3e-4")
LISTS = ("methods", "tasks", "models", "configs")


@dataclass(frozen=True)
class Command:
    """One command: its name, what it does, one real example, its handler and its arguments with their help."""

    name: str
    summary: str
    example: str
    handler: str
    arguments: tuple[tuple[str, str], ...]


COMMANDS = (
    Command(
        "train",
        "Train adapters as a configuration says.",
        "mmpeft train vision/adaptformer_digits train.epochs=5 adapters.main.bottleneck=8",
        "mmpeft.cli.run:train",
        (CONFIG, OVERRIDES),
    ),
    Command(
        "compare",
        "Train several configurations and compare them: a table and a picture. Finished ones are not repeated.",
        "mmpeft compare vision/lora_digits vision/vpt_deep_digits output=out/compared train.epochs=5",
        "mmpeft.cli.compare:compare",
        (("configs", "configurations (files or names of shipped ones), and key=value for all of them"),),
    ),
    Command(
        "eval",
        "Evaluate a finished run on its test split; the scores are printed and written to evaluation.json.",
        "mmpeft eval runs/adaptformer_digits",
        "mmpeft.cli.run:evaluate",
        (RUN, OVERRIDES),
    ),
    Command(
        "predict",
        "Show one test sample, and what the adapter of a finished run says of it.",
        "mmpeft predict runs/adaptformer_digits --index 7",
        "mmpeft.cli.run:predict",
        (RUN, OVERRIDES),
    ),
    Command(
        "check",
        "Validate a configuration, show three samples, try one step and report its peak memory.",
        "mmpeft check vision/adaptformer_digits train.batch_size=256",
        "mmpeft.cli.run:check",
        (CONFIG, OVERRIDES),
    ),
    Command(
        "show",
        "Print a configuration with all defaults, and where each value was set.",
        "mmpeft show vision/adaptformer_digits train.lr=3e-4",
        "mmpeft.cli.configs:show",
        (CONFIG, OVERRIDES),
    ),
    Command(
        "copy",
        "Copy a shipped configuration or task script out, to change it.",
        "mmpeft copy vision/adaptformer_digits my_run.yaml",
        "mmpeft.cli.configs:copy",
        (
            ("source", "the name of a configuration or task (mmpeft list configs|tasks)"),
            ("dest", "a new file, or a directory"),
        ),
    ),
    Command(
        "list",
        "List methods, tasks, models or configurations.",
        "mmpeft list methods",
        "mmpeft.cli.listing:show_list",
        (("what", " | ".join(LISTS)),),
    ),
    Command(
        "inspect",
        "Print a model's anatomy: the sites that can be adapted. Downloads and computes nothing.",
        "mmpeft inspect timm/vit_base_patch16_224",
        "mmpeft.cli.models:inspect",
        (MODEL,),
    ),
    Command(
        "merge",
        "Merge an adapter into its model and save plain weights.",
        "mmpeft merge tiny/vit runs/lora_digits/adapter merged.safetensors --num-classes 10",
        "mmpeft.cli.models:merge",
        (MODEL, ADAPTER, ("dest", "a new .safetensors file")),
    ),
    Command(
        "export",
        "Write an adapter in another library's format, or the class embeddings of a run.",
        "mmpeft export runs/lora_digits/adapter lora_for_peft --format peft",
        "mmpeft.cli.adapters:export",
        (ADAPTER, ("dest", "a new directory, or a .safetensors file")),
    ),
    Command(
        "import",
        "Read an adapter in another library's or a paper's format and write it as ours. Nothing in the file is run.",
        "mmpeft import checkpoint-99.pth adapter --format adaptformer --options scale=0.1",
        "mmpeft.cli.adapters:import_adapter",
        (("source", "the other library's directory, or the paper's file"), ("dest", "a new directory")),
    ),
)


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """Return the options of a call; a list of overrides may go on behind an option: ``RUN --index 7 key=value``."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    late = [argument for argument in rest if not argument.startswith("-")]
    if late != rest or (rest and not options.list):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        getattr(options, options.list).extend(late)
    return options


def make_parser() -> ArgumentParser:
    """Return the parser of the whole command line."""
    parser = ArgumentParser(
        "mmpeft",
        description="Adapt frozen foundation models by training a few parameters.",
        epilog=f"example:\n  {COMMANDS[0].example}\n\nmmpeft COMMAND --help shows an example of each command.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        _add_arguments(
            commands.add_parser(
                command.name,
                help=command.summary,
                description=command.summary,
                epilog=f"example:\n  {command.example}{_formats(command)}",
                formatter_class=RawDescriptionHelpFormatter,
            ),
            command,
        )
    return parser


def _add_arguments(parser: ArgumentParser, command: Command) -> None:
    for name, text in command.arguments:
        if name == "overrides":
            parser.add_argument(name, metavar="key=value", nargs="*", help=text)
        elif name == "configs":
            parser.add_argument(name, metavar="CONFIG", nargs="+", help=text)
        else:
            parser.add_argument(name, metavar=name.upper(), help=text, choices=LISTS if name == "what" else None)
    if command.name == "predict":
        parser.add_argument("--index", type=int, default=0, metavar="N", help="which test sample, from 0")
    if command.name == "merge":
        parser.add_argument("--num-classes", type=int, metavar="N", help="classes of the head that was trained")
    if command.name in ("export", "import"):
        parser.add_argument("--format", required=True, help="one of the formats below")
        parser.add_argument("--base", metavar="MODEL", help="the adapter's model, where the format needs it")
    if command.name == "import":
        said = "what the file does not hold, such as scale=0.1; what is not given is assumed and said"
        parser.add_argument("--options", metavar="key=value", nargs="+", default=[], help=said)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    lists = [name for name, _ in command.arguments if name in ("overrides", "configs")]
    parser.set_defaults(handler=command.handler, list=lists[0] if lists else None)


def _formats(command: Command) -> str:
    formats = {"import": readable, "export": writable}
    known = formats[command.name]() if command.name in formats else {}
    return "".join(["\n\nformats:" if known else "", *(f"\n  {name:20}{text}" for name, text in known.items())])
