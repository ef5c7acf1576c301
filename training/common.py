"""What the training scripts share: read a YAML configuration, apply command-line changes, train."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
import yaml

from vidrd_core.train.loop import Stage, train

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
    made = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            made[name] = build(hint, value)
        elif Path in (hint, *typing.get_args(hint)):
            made[name] = None if value is None else Path(value)
        elif hint is float:
            made[name] = float(value)
        else:
            made[name] = value
    return kind(**made)


def run(kind: type[Configuration], make_stage: Callable[[Configuration], Stage]) -> None:
    """Parse the command line, build the stage and train it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    configuration, common = parse(kind, sys.argv[1:])
    if common.dry_run:
        logging.info("%s", configuration)
        return
    torch.manual_seed(configuration.train.seed)
    stage = make_stage(configuration)
    configuration.train.run.mkdir(parents=True, exist_ok=True)
    (configuration.train.run / "config.txt").write_text(repr(configuration), encoding="utf-8")
    train(stage, configuration.train)
