"""Old names of methods and of their settings, so that results and command lines of earlier versions stay valid."""

from __future__ import annotations

import re

OLD_METHODS = {"truth": "ground truth", "truth decoded": "ground truth decoded", "forward led": "smooth"}
OLD_SETTINGS = {"lead": "cleaner_overlap"}  # of a method


def current_name(name: str) -> str:
    """A method's name ``base, setting=value, ...`` with the current names of its base and its settings."""
    base, *changes = (part.strip() for part in name.split(","))
    return ", ".join([OLD_METHODS.get(base, base), *(_renamed(change, OLD_SETTINGS) for change in changes)])


def old_names(name: str) -> list[str]:
    """The names under which earlier versions may have stored results of the method ``name``."""
    base, *changes = name.split(", ")
    bases = [*(old for old, current in OLD_METHODS.items() if current == base), base]
    settings = {current: old for old, current in OLD_SETTINGS.items()}
    names = (", ".join([each, *(_renamed(change, settings) for change in changes)]) for each in bases)
    return [each for each in names if each != name]


def current_definition(definition: str) -> str:
    """The ``repr`` of a method, stored by an earlier version, with the current names of classes and settings."""
    return re.sub(r"\blead=", "cleaner_overlap=", re.sub(r"\bTruth\(", "GroundTruth(", definition))


def _renamed(change: str, names: dict[str, str]) -> str:
    setting, equals, value = change.partition("=")
    return names.get(setting, setting) + equals + value
