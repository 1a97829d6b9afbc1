"""Compose files as Compose reads them: variables replaced, and one file laid over another."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def replaced(text: str, variables: Mapping[str, str]) -> str:
    """`${NAME:-default}` replaced. Raises KeyError where there is neither a value nor a default."""

    def value(match: re.Match[str]) -> str:
        return variables.get(match[1]) or (match[2] if match[2] is not None else variables[match[1]])

    return _VARIABLE.sub(value, text)


def read(name: str, variables: Mapping[str, str] = {}) -> dict[str, Any]:
    """A file of deploy/."""
    tree = yaml.safe_load(replaced((DEPLOY / name).read_text(encoding="utf-8"), variables))
    assert isinstance(tree, dict)
    return tree


def laid_over(base: Any, top: Any) -> Any:
    """Mappings are merged, key by key; anything else is replaced. Compose adds up most lists, but replaces
    commands and entry points, which are the only ones that our files overlap in."""
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return {**base, **{key: laid_over(base.get(key), value) for key, value in top.items()}}
