"""The plan of the house, as the README draws it."""

import ast
import re
from pathlib import Path

import pytest

import xpnn

HOUSE = Path(xpnn.__file__).parent
README = Path(__file__).parents[1] / "README.md"


def rooms():
    """Files and folders in the README's order, from the ground up."""
    if not README.exists():
        pytest.skip("the README is not beside the tests")
    plan = README.read_text(encoding="utf-8").partition("## Reading the code")[2]
    return re.findall(r"^  (\w+)(?:\.py|/)", plan, re.MULTILINE)


def imported(file):
    """The rooms that a file imports from, within functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xpnn"):
            yield from (f"{node.module}.{alias.name}".split(".")[1] for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("xpnn."))


def test_a_file_imports_only_from_those_below_it_in_the_house():
    floors = {room: floor for floor, room in enumerate(rooms())}
    upward = [
        f"{file.relative_to(HOUSE)}: {room}"
        for file in HOUSE.rglob("*.py")
        if (own := file.relative_to(HOUSE).parts[0].removesuffix(".py")) in floors
        for room in imported(file)
        if floors[room] > floors[own]
    ]
    assert not upward


def test_the_plan_has_every_room():
    there = {path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(rooms()) == there - {"__init__", "__main__"}
