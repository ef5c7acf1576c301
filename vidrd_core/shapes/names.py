"""Former names of methods and of their settings, so that stored results and old command lines stay valid."""

from __future__ import annotations

import re

FORMER_METHODS = {"truth": "ground truth", "truth decoded": "ground truth decoded", "forward led": "smooth"}
FORMER_SETTINGS = {"lead": "cleaner_overlap"}  # of a method


def present_name(name: str) -> str:
    """A method's name ``base, field=value, ...`` with the present names of its base and its fields."""
    base, *changes = (part.strip() for part in name.split(","))
    fields = [change.partition("=") for change in changes]
    renamed = [FORMER_SETTINGS.get(field, field) + equals + value for field, equals, value in fields]
    return ", ".join([FORMER_METHODS.get(base, base), *renamed])


def former_names(name: str) -> list[str]:
    """The names under which results of the method ``name`` may have been stored before."""
    base, *changes = name.split(", ")
    fields = {present: former for former, present in FORMER_SETTINGS.items()}
    bases = [former for former, present in FORMER_METHODS.items() if present == base]
    old = [fields.get(field, field) + equals + value for field, equals, value in (c.partition("=") for c in changes)]
    return [found for former in [*bases, base] if (found := ", ".join([former, *old])) != name]


def present_definition(definition: str) -> str:
    """A stored ``repr`` of a method with the present names of classes and fields."""
    return re.sub(r"\blead=", "cleaner_overlap=", re.sub(r"\bTruth\(", "GroundTruth(", definition))
