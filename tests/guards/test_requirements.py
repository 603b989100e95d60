"""What is installed is pinned, hashed, and from wherever the machine's pip is told to take it."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.support.servers import ROOT

FILES = ["run", "test"]
SDKS = ROOT / "tests" / "sdks"
CARD = {"fastapi", "uvicorn", "openai", "python-jose", "libpass", "redis", "slowapi", "fakeredis"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def requirements(name: str) -> list[str]:
    """Logical lines: comments gone, continued lines joined."""
    lines = [line for line in text(name).splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def pins(name: str) -> set[tuple[str, str]]:
    return {(found[1], found[2]) for line in requirements(name) if (found := re.match(r"(\S+)==(\S+)", line))}


def wanted(specifiers: list[str]) -> set[str]:
    """Names of packages, as an index spells them."""
    names = {re.match(r"[A-Za-z0-9._-]+", specifier)[0] for specifier in specifiers}  # type: ignore[index]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_pinned_with_hashes(name):
    """One exact version each, and nothing is installed whose bytes are not those that were tested."""
    lines = requirements(name)
    assert len(lines) > 20
    for line in lines:
        assert re.match(r"[a-z0-9._-]+==[^\s;]+ ( ?;[^\\]+)? *--hash=sha256:[0-9a-f]{64}", line), line[:80]
        assert set(re.findall(r"--\w+", line)) == {"--hash"}, line[:80]


@pytest.mark.parametrize("name", FILES)
def test_no_index_is_named(name):
    """No URL, no host, no option of pip's: a mirror is the installer's affair."""
    content = text(name)
    for word in ("://", "pypi", "pythonhosted", "index-url", "find-links", "trusted-host", " @ "):
        assert word not in content.lower(), word


def test_the_tests_run_on_what_is_served():
    """Every pin of production stands in the tests' file, at the same version."""
    assert pins("run") <= pins("test")


def test_every_direct_dependency_is_pinned():
    """The project file and the lock files have not drifted apart; `scripts/lock` brings them together."""
    extras = PROJECT["optional-dependencies"]
    assert wanted(PROJECT["dependencies"]) <= {package for package, _ in pins("run")}
    assert wanted(extras["test"] + extras["build"]) <= {package for package, _ in pins("test")}


def test_the_packages_that_were_asked_for_are_the_ones_that_are_used():
    """FastAPI and Uvicorn serve, openai calls, python-jose, libpass and slowapi guard, Redis coordinates."""
    assert wanted(PROJECT["dependencies"]) >= CARD
    assert "pytest" in wanted(PROJECT["optional-dependencies"]["test"])


@pytest.mark.parametrize(
    "distribution", ["openai", "jose", "passlib", "redis", "slowapi", "fakeredis", "fastapi"]
)
def test_a_package_of_the_card_is_imported_by_the_product(distribution):
    """Named and not used would be a lie."""
    sources = [path.read_text() for folder in ("api", "auth") for path in (ROOT / folder).rglob("*.py")]
    assert any(re.search(rf"^\s*(from|import) {distribution}\b", source, re.MULTILINE) for source in sources)


def test_what_the_sdk_probes_install_is_pinned_too():
    """Older Python SDKs by hashes, Node's by a lock file with integrity; neither says where from."""
    older = (SDKS / "older.txt").read_text()
    assert older.count("--hash=sha256:") > older.count("==")
    lock = (SDKS / "package-lock.json").read_text()
    packages = [found for found in json.loads(lock)["packages"].values() if "version" in found]
    assert len(packages) > 5
    assert all(found["integrity"].startswith("sha512-") for found in packages)
    for word in ("://", "resolved", "npmjs", "pypi", "pythonhosted"):
        assert word not in older + lock.replace("https://opencollective.com", ""), word
