"""What each module of ours imports, read from its source, imports inside functions included."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("gateway", "rm_server", "trainers", "loadtests")


def module_name(file: Path) -> str:
    """gateway/best_of_n.py is gateway.best_of_n; a package's __init__.py is the package."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: str) -> dict[str, Path]:
    """Every module of a package, by name."""
    return {module_name(file): file for file in sorted((ROOT / package).rglob("*.py"))}


def imported_by(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """The absolute names that a module imports; `from a import b` gives both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parents = module.split(".")
    up = node.level - 1 if is_package else node.level
    parts = parents[: len(parents) - up]
    return ".".join([*parts, node.module] if node.module else parts)


def graph(package: str) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports."""
    files = modules(package)
    edges = {}
    for name, file in files.items():
        found = imported_by(file.read_text(), name, is_package=file.name == "__init__.py")
        edges[name] = {target for target in found if target in files and target != name}
    return edges


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """One import cycle, its first module again at the end; empty where there is none."""
    done: set[str] = set()
    for start in edges:
        cycle = _walk(start, edges, [], done)
        if cycle:
            return cycle
    return []


def _walk(name: str, edges: dict[str, set[str]], path: list[str], done: set[str]) -> list[str]:
    if name in path:
        return [*path[path.index(name) :], name]
    if name in done:
        return []
    for target in sorted(edges.get(name, ())):
        cycle = _walk(target, edges, [*path, name], done)
        if cycle:
            return cycle
    done.add(name)
    return []
