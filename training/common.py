"""Shared by the training scripts: read a YAML configuration, apply options of the command line, train."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
import yaml
from accelerate import PartialState

from vidrd_core.train.loop import train
from vidrd_core.train.task import TrainingTask

Configuration = TypeVar("Configuration", bound=Any)

OLD_NAMES = {  # of settings -> current ones; configurations and command lines with the old names stay valid
    "anchor_share": "cleaner_frame_share",
    "anchor_level": "cleaner_frame_level",
    "guidance_lead": "cleaner_overlap",
}


def parse(kind: type[Configuration], arguments: list[str]) -> tuple[Configuration, argparse.Namespace]:
    """The configuration of ``--config FILE`` with ``--section.name VALUE`` changes, and the common options."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path, required=True, help="YAML file in training/configs")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and stop")
    common, rest = parser.parse_known_args(arguments)
    values = yaml.safe_load(common.config.read_text(encoding="utf-8"))
    return tyro.cli(kind, args=_current_options(kind, rest), default=build(kind, values)), common


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
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}: {error}") from error
    return value


def run(kind: type[Configuration], make_task: Callable[[Configuration], TrainingTask]) -> None:
    """Parse the command line, build the training task and train it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        configuration, common = parse(kind, sys.argv[1:])
        if common.dry_run:
            logging.info("%s", configuration)
            return
        torch.manual_seed(configuration.train.seed)
        task = make_task(configuration)
        if os.environ.get("RANK", "0") == "0":  # of several processes, the first writes
            configuration.train.run.mkdir(parents=True, exist_ok=True)
            (configuration.train.run / "config.txt").write_text(repr(configuration), encoding="utf-8")
        train(task, configuration.train)
    except (ValueError, OSError, MemoryError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    PartialState().destroy_process_group()
