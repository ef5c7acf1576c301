"""Shared by the training scripts: read a YAML configuration, apply options of the command line, train."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import typing
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import tyro
import yaml
from accelerate import PartialState

from vidrd_core.files import alone
from vidrd_core.reuse.settings import OLD_NAMES as OLD_REUSE_NAMES
from vidrd_core.train.loop import train
from vidrd_core.train.task import TrainingTask

Configuration = TypeVar("Configuration", bound=Any)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["fp32", "bf16", "fp16"]

OLD_NAMES = {  # of settings -> current ones; configurations and command lines with the old names stay valid
    "anchor_share": "cleaner_frame_share",
    "anchor_level": "cleaner_frame_level",
    **OLD_REUSE_NAMES,
}

MOST_VALUES = 1_000_000  # of a configuration


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every script that reads a configuration."""

    config: Path | None = None  # YAML file in training/configs; needed
    dry_run: bool = False  # print the configuration and stop

    def change(self, values: dict[str, Any]) -> None:
        """Change what the file holds, before the options of single settings do."""


def parse(
    kind: type[Configuration],
    arguments: Sequence[str] | None = None,
    options: type[Options] = Options,
) -> tuple[Configuration, Options]:
    """The configuration of ``--config FILE`` with ``--section.name VALUE`` changes, and the script's own options.

    Args:
        arguments: of the command line; None: this process's.
        options: dataclass of the options that are no settings.

    Raises:
        ValueError: ``--config`` is missing, or the file does not fit.
    """
    given, rest = tyro.cli(options, args=arguments, return_unknown_args=True, add_help=False)
    if given.config is None:
        raise ValueError("--config FILE is missing, a YAML file as in training/configs; with it --help lists settings")
    try:
        values = yaml.safe_load(given.config.read_text(encoding="utf-8"))
        _check_expanded(values)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{given.config} is no YAML of plain values ({' '.join(str(error).split())}); nothing of it was used. "
            "Correct the line, or write a new file as in training/configs"
        ) from error
    given.change(values)
    described = f"Settings of {given.config}, which these options change. Further options: --config FILE, --dry-run."
    return tyro.cli(kind, args=_current_options(kind, rest), default=build(kind, values), description=described), given


def _check_expanded(values: Any) -> None:
    """Raise ValueError where lines that repeat each other (``*name``) stand for more values than memory holds."""
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"its repetitions stand for more than {MOST_VALUES} values")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _current_options(kind: type[Any], arguments: list[str]) -> list[str]:
    """``--section.old-name VALUE`` under the setting's current name."""
    return [_current_option(kind, argument) if argument.startswith("--") else argument for argument in arguments]


def _current_option(kind: type[Any], option: str) -> str:
    path, equals, value = option.removeprefix("--").partition("=")
    *sections, name = path.replace("-", "_").split(".")
    if name not in OLD_NAMES:
        return option
    for section in sections:
        kind = typing.get_type_hints(kind).get(section, object)
    return f"--{'.'.join([*sections, _current_name(kind, name)])}{equals}{value}"


def _current_name(kind: type[Any], name: str) -> str:
    current = OLD_NAMES.get(name, name)
    return current if current in typing.get_type_hints(kind) else name


def build(kind: type[Any], values: dict[str, Any]) -> Any:
    """A configuration dataclass from nested mappings.

    Raises:
        ValueError: a name is unknown (the message lists the known ones) or missing, or a value is of another type.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} is {values!r}; expected settings by name, of {sorted(hints)}")
    values = {_current_name(kind, name): value for name, value in values.items()}
    unknown = set(values) - set(hints)
    for name, present in getattr(kind, "REPLACED", {}).items():
        if name in unknown:
            raise ValueError(f"{name} is no longer a setting of {kind.__name__}: set {present}")
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}; {kind.__name__} has {sorted(hints)}")
    open_ends = (dataclasses.MISSING, dataclasses.MISSING)
    needed = {f.name for f in dataclasses.fields(kind) if (f.default, f.default_factory) == open_ends}
    if needed - set(values):
        raise ValueError(f"settings {sorted(needed - set(values))} of {kind.__name__} are missing in the YAML file")
    return kind(**{name: _value(f"{kind.__name__}.{name}", hints[name], value) for name, value in values.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    """A YAML value as its type hint wants it."""
    kinds = typing.get_args(hint) or (hint,)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, {} if value is None else value)
    if value is None or typing.get_origin(hint) is dict:
        return value
    try:
        if typing.get_origin(hint) is tuple:
            listed = list(value) if isinstance(value, list | tuple) else [value]
            each = [kinds[0]] * len(listed) if kinds[-1] is Ellipsis else kinds
            return tuple(_value(name, k, v) for k, v in zip(each, listed, strict=True))
        if Path in kinds:
            return Path(value)
        if float in kinds:
            return float(value)
        if int in kinds:  # YAML reads 1e6 as text
            number = float(value)
            if isinstance(value, bool) or number != int(number):
                raise ValueError("not a whole number")
            return int(number)
        if bool in kinds and not isinstance(value, bool):
            raise ValueError("neither true nor false")
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is {value!r}: {error}") from error
    return value


def run(kind: type[Configuration], make_task: Callable[[Configuration], TrainingTask]) -> None:
    """Parse the command line, build the training task and train it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        configuration, options = parse(kind)
        if options.dry_run:
            logging.info("%s", configuration)
            return
        torch.manual_seed(configuration.train.seed)
        task = make_task(configuration)
        folder = configuration.train.run
        with ExitStack() as stack:
            if os.environ.get("RANK", "0") == "0":  # of several processes, the first writes
                stack.enter_context(alone(folder / "train.lock", f"train in {folder}"))
                (folder / "config.txt").write_text(repr(configuration), encoding="utf-8")
            train(task, configuration.train)
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    PartialState().destroy_process_group()
