"""The node schemas, read from their source without importing ComfyUI; run as a script it renews the help pages' tables.

    python tests/node_schemas.py        # after a change of an input, its range or its tooltip

Only what the source states is known: of a list that ComfyUI fills (samplers, schedulers, files) the literal entries.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "nodes").glob("*.py"))
PAGES = ROOT / "web" / "docs"
UNKNOWN = object()  # a value that only ComfyUI can give
TABLE = re.compile(r"(?<=\n)\| (?:name|output) \|.*?\n(?!\|)", re.DOTALL)


def cell(text: str) -> str:
    """Text for a table of a help page, which is shown as HTML."""
    return text.replace("<", "&lt;").replace("|", "&#124;")


@dataclass
class Slot:
    """An input or an output."""

    id: str
    type: str
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.values.get("display_name", self.id)

    @property
    def tooltip(self) -> str:
        return self.values["tooltip"]

    def default(self) -> str:
        if self.values.get("optional"):
            return "optional"
        if "default" not in self.values:
            return "the first" if self.type == "COMBO" else "required"
        default = self.values["default"]
        return "empty" if default == "" else " ".join(str(default).splitlines())

    def range(self) -> str:
        if "options" in self.values:
            options = self.values["options"]
            if options is UNKNOWN:
                return "a list"
            return ", ".join("..." if o is UNKNOWN else str(o) for o in options)
        if "min" in self.values:
            low, high = self.values["min"], self.values["max"]
            return f"{low} to {'2^63 - 1' if high == 2**63 - 1 else high}"
        return "text" if self.type == "STRING" else ""


@dataclass
class Node:
    """A node's schema."""

    id: str
    display_name: str
    description: str
    inputs: list[Slot]
    outputs: list[Slot]

    def input_table(self) -> str:
        lines = ["| name | type | default | range | meaning and effect |", "|---|---|---|---|---|"]
        for slot in self.inputs:
            lines.append(f"| `{slot.id}` | {slot.type} | {slot.default()} | {slot.range()} | {cell(slot.tooltip)} |")
        return "\n".join(lines) + "\n"

    def output_table(self) -> str:
        lines = ["| output | type | meaning |", "|---|---|---|"]
        return (
            "\n".join(lines + [f"| {slot.label} | {slot.type} | {cell(slot.tooltip)} |" for slot in self.outputs])
            + "\n"
        )

    def tables(self) -> list[str]:
        return [self.input_table()] + ([self.output_table()] if self.outputs else [])


def named(assignment: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    """The names that an assignment gives values to; of ``A, B = "a", "b"`` each its own."""
    for target in assignment.targets:
        if isinstance(target, ast.Name):
            yield target.id, assignment.value
        elif isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            for name, value in zip(target.elts, assignment.value.elts):
                yield ast.unparse(name), value


class Reader:
    """Evaluates the few kinds of expressions that schemas are written with."""

    def __init__(self) -> None:
        self.constants: dict[str, ast.expr] = {}
        self.functions: dict[str, ast.expr] = {}
        self.schemas: list[ast.Call] = []
        for path in SOURCES:
            self.read(ast.parse(path.read_text(encoding="utf-8")), path.stem)

    def read(self, tree: ast.Module, module: str) -> None:
        for item in tree.body:
            if isinstance(item, ast.Assign):
                for name, value in named(item):
                    self.constants[name] = self.constants[f"{module}.{name}"] = value
            elif isinstance(item, ast.FunctionDef) and isinstance(item.body[-1], ast.Return) and item.body[-1].value:
                self.functions[item.name] = item.body[-1].value
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "io.Schema"]
        self.schemas += calls

    def value(self, expression: ast.expr) -> Any:
        if isinstance(expression, ast.Constant):
            return expression.value
        if isinstance(expression, ast.List | ast.Tuple):
            return self.items(expression)
        if isinstance(expression, ast.Name | ast.Attribute) and ast.unparse(expression) in self.constants:
            return self.value(self.constants[ast.unparse(expression)])
        if isinstance(expression, ast.BinOp):
            left, right = self.value(expression.left), self.value(expression.right)
            return {ast.Add: lambda: left + right, ast.Sub: lambda: left - right, ast.Pow: lambda: left**right}[
                type(expression.op)
            ]()
        return UNKNOWN

    def items(self, sequence: ast.List | ast.Tuple) -> list[Any]:
        found: list[Any] = []
        for element in sequence.elts:
            inner = self.value(element.value) if isinstance(element, ast.Starred) else self.value(element)
            found += inner if isinstance(element, ast.Starred) and isinstance(inner, list) else [inner]
        return found

    def slots(self, expression: ast.expr) -> list[Slot]:
        if isinstance(expression, ast.Starred):
            return self.slots(expression.value)
        if isinstance(expression, ast.List):
            return [slot for element in expression.elts for slot in self.slots(element)]
        assert isinstance(expression, ast.Call), ast.unparse(expression)
        name = ast.unparse(expression.func)
        if name == "advanced":
            return self.slots(expression.args[0])
        if name in self.functions:
            return self.slots(self.functions[name])
        found = re.fullmatch(r"io\.(?:Custom\('(?P<custom>\w+)'\)|(?P<type>\w+))\.(Input|Output)", name)
        assert found, f"{name} is no input or output that this reader knows"
        values = {str(k.arg): self.value(k.value) for k in expression.keywords}
        return [Slot(self.value(expression.args[0]), found["custom"] or found["type"].upper(), values)]

    def nodes(self) -> dict[str, Node]:
        found = {}
        for call in self.schemas:
            parts = {str(k.arg): k.value for k in call.keywords}
            names = [self.value(parts[key]) for key in ("node_id", "display_name", "description")]
            found[names[0]] = Node(*names, self.slots(parts["inputs"]), self.slots(parts["outputs"]))
        return found


def read_nodes() -> dict[str, Node]:
    """Every node by its id."""
    return Reader().nodes()


def renew_tables() -> None:
    """Write the tables of every help page anew from the schemas; the text around them stays."""
    for node in read_nodes().values():
        page = PAGES / f"{node.id}.md"
        tables = iter(node.tables())
        text = TABLE.sub(lambda _: next(tables), page.read_text(encoding="utf-8"))  # noqa: B023 (used at once)
        page.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    renew_tables()
