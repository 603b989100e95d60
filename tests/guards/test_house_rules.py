"""Rules that nobody should have to remember: short files, no skips, no sleeps, a guarantee in every test."""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINES = 400
SOURCES = sorted(
    path
    for folder in ("api", "auth", "scripts", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "node_modules" not in path.parts
)
TESTS = [path for path in SOURCES if path.is_relative_to(ROOT / "tests")]
ESCAPES = {"skip", "skipif", "skipIf", "skipUnless", "SkipTest", "skipTest", "importorskip", "xfail", "flaky"}
MAY_SLEEP = {
    "tests/contracts/helpers.py": "`eventually` asks a server, again and again, under a bound of its own",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def word(node: ast.expr) -> str:
    """The last word of a name or of an attribute."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def sleeps(path: Path) -> Iterator[int]:
    """Lines with a call of `sleep` for a constant time that is not zero."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and word(node.func) == "sleep":
            for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
                if isinstance(value, ast.Constant) and value.value:
                    yield node.lineno


def test_this_file_finds_the_suite():
    """A guard that looks at nothing is green for ever."""
    assert len(SOURCES) > 60
    assert ROOT / "tests/guards/test_house_rules.py" in TESTS


def test_no_file_is_over_the_limit():
    """A file that cannot be read in one sitting is two files."""
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_test_can_be_skipped_or_forgiven():
    """A missing server fails a test; a test that is known to fail is mended or deleted."""
    escapes = [
        f"{name_of(path)}:{node.lineno} {word(node)}"
        for path in TESTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute | ast.Name) and word(node) in ESCAPES
    ]
    escapes += [
        f"{name_of(path)}:{node.lineno} {alias.name}"
        for path in TESTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in ESCAPES
    ]
    assert escapes == []


def test_no_failed_test_is_run_again():
    """A flaky test is a finding. No plugin and no option gives it a second try."""
    settings = (ROOT / "pyproject.toml").read_text() + (ROOT / "requirements/test.txt").read_text()
    assert "rerun" not in settings
    assert "flaky" not in settings


def test_every_test_says_what_it_guarantees():
    """In its docstring, as a sentence."""
    silent = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in TESTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and len((ast.get_docstring(node) or "").split()) < 3
    ]
    assert silent == []


def test_no_two_tests_of_a_file_share_a_name():
    """The first would never run."""
    for path in TESTS:
        scopes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Module | ast.ClassDef)]
        for scope in scopes:
            names = [getattr(node, "name", "") for node in scope.body]
            tests = [name for name in names if name.startswith("test_")]
            assert len(tests) == len(set(tests)), name_of(path)


def test_no_test_sleeps_to_wait_for_something():
    """`sleep(0)` gives others a turn; any other time is a guess that a busy machine proves wrong."""
    found = {name_of(path): list(sleeps(path)) for path in TESTS}
    assert {name for name, lines in found.items() if lines} == set(MAY_SLEEP), found


@pytest.mark.parametrize(
    "call", ["sleep(1)", "time.sleep(0.1)", "await asyncio.sleep(delay=2)", "anyio.sleep(.5)"]
)
def test_the_guard_against_sleeps_sees_them(call, tmp_path):
    """In each way that it can be written; and `sleep(0)` is none."""
    file = tmp_path / "sample.py"
    file.write_text(f"async def test():\n    {call}\n    await asyncio.sleep(0)\n")
    assert list(sleeps(file)) == [2]


def test_every_module_of_the_product_says_what_it_promises():
    """A module docstring, in the product and in its tests alike."""
    silent = [name_of(path) for path in SOURCES if path.stat().st_size and not ast.get_docstring(tree(path))]
    assert [name for name in silent if "/migrations/versions/" not in name] == []
