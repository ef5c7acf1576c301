"""What the training scripts share: read a YAML configuration, apply command-line changes, train."""

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
from vidrd_core.train.stage import Stage

Configuration = TypeVar("Configuration", bound=Any)


def parse(kind: type[Configuration], arguments: list[str]) -> tuple[Configuration, argparse.Namespace]:
    """The configuration of ``--config FILE`` with ``--section.name VALUE`` changes, and the common options."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path, required=True, help="YAML file in training/configs")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and stop")
    common, rest = parser.parse_known_args(arguments)
    values = yaml.safe_load(common.config.read_text(encoding="utf-8"))
    return tyro.cli(kind, args=rest, default=build(kind, values)), common


def build(kind: type[Any], values: dict[str, Any]) -> Any:
    """A configuration dataclass from nested mappings; unknown names are errors that list the known ones."""
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ValueError(f"unknown settings {sorted(unknown)}; {kind.__name__} has {sorted(hints)}")
    return kind(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    """A YAML value as its type hint wants it."""
    parts = typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value)
    if value is None:
        return None
    if typing.get_origin(hint) is tuple:
        listed = [value] if isinstance(value, str) else list(value)
        kinds = [parts[0]] * len(listed) if parts[-1] is Ellipsis else parts
        return tuple(_value(k, v) for k, v in zip(kinds, listed, strict=True))
    if Path in (hint, *parts):
        return Path(value)
    if float in (hint, *parts):
        return float(value)
    return value


def run(kind: type[Configuration], make_stage: Callable[[Configuration], Stage]) -> None:
    """Parse the command line, build the stage and train it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    configuration, common = parse(kind, sys.argv[1:])
    if common.dry_run:
        logging.info("%s", configuration)
        return
    torch.manual_seed(configuration.train.seed)
    stage = make_stage(configuration)
    if os.environ.get("RANK", "0") == "0":  # of several processes, the first writes
        configuration.train.run.mkdir(parents=True, exist_ok=True)
        (configuration.train.run / "config.txt").write_text(repr(configuration), encoding="utf-8")
    train(stage, configuration.train)
    PartialState().destroy_process_group()
