"""The configuration file: YAML, read once, checked against the types of `gateway.config`.

Plain YAML 1.1 without tags; a key given twice is an error, as is one that does not exist. `python -m gateway
check --config FILE` says what is wrong with a file, `--schema` prints its JSON schema for editors.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from gateway.config import ConfigError, GatewayConfig

MAX_BYTES = 1024 * 1024


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which does not let the second of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See yaml."""
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise ConfigError(f"line {key.start_mark.line + 1}: `{key.value}` is given twice")
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path) -> GatewayConfig:
    """The configuration in a file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or cannot work; the message names file and key.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB, which no configuration is")
    try:
        return parse(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(raw: bytes) -> GatewayConfig:
    """The configuration in YAML text. Raises ConfigError."""
    try:
        tree = yaml.load(raw, _Loader)  # a subclass of the safe loader
        return msgspec.convert(tree, GatewayConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(f"{line}not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("not YAML in UTF-8") from None


def json_schema() -> bytes:
    """The JSON schema of the file, for editors and linters."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(GatewayConfig)))


def _explain(text: str) -> str:
    """msgspec's message, the path first and as one would write it."""
    problem, _, path = text.rpartition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    return f"{path}: {problem}" if problem and path else problem or text
