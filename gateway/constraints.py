"""What a request may ask of the engine's grammar compiler: tools, schemas, patterns; each bounded in size.

One engine serves everybody, and bad tools, patterns or schemas have ended engines before (CVE-2025-48944,
vLLM #17313). Here shapes are checked and sizes bounded; vLLM itself limits the time that a pattern may take.
A form that vLLM does not know is refused by name: to ignore it would mean an answer without the constraint.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.errors import InvalidRequestError
from gateway.strict_json import parse_object

MAX_PATTERN = 2048
"""Characters of a regular expression, be it in a schema or by itself."""
MAX_SCHEMA_BYTES = 64 * 1024
"""Of a schema, a tool's parameters, a grammar or a structural tag, as JSON."""
MAX_TOOLS = 128
TOOL_CHOICES = ("none", "auto", "required")

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Pattern = Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN)]
Choice = Annotated[str, Meta(max_length=4096)]
Grammar = Annotated[str, Meta(min_length=1, max_length=MAX_SCHEMA_BYTES)]


class Function(msgspec.Struct, frozen=True):
    """What a tool offers."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """An entry of `tools`. OpenAI's `custom` tools are not known to vLLM."""

    type: str = "function"
    function: Function | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """OpenAI's `response_format.json_schema`."""

    name: Name
    schema: dict[str, Any]
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """OpenAI's `response_format`, and vLLM's `structural_tag`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: Any = None
    structures: list[Any] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`: exactly one of the first six."""

    json: dict[str, Any] | Grammar | None = None
    regex: Pattern | None = None
    choice: Annotated[list[Choice], Meta(min_length=1, max_length=1024)] | None = None
    grammar: Grammar | None = None
    json_object: bool | None = None
    structural_tag: Grammar | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    whitespace_pattern: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class RepetitionDetection(msgspec.Struct, frozen=True):
    """vLLM's `repetition_detection`; the engine looks back this far at every token."""

    max_pattern_size: Annotated[int, Meta(ge=0, le=1024)] = 0
    min_pattern_size: Annotated[int, Meta(ge=0, le=1024)] = 0
    min_count: Annotated[int, Meta(ge=0, le=1024)] = 0


def check_tools(tools: Sequence[Tool] | None, tool_choice: str | dict[str, Any] | None) -> None:
    """Tools that exist, a choice among them, schemas of a bounded size.

    Raises:
        InvalidRequestError: naming the field.
    """
    for position, tool in enumerate(tools or ()):
        _check_tool(tool, f"tools[{position}]")
    if tools is not None and not tools:
        raise InvalidRequestError("`tools` must not be empty: leave it out instead.", param="tools")
    if tool_choice is None or tool_choice == "none":
        return
    if tools is None:
        raise InvalidRequestError("`tool_choice` needs `tools`.", param="tool_choice")
    if isinstance(tool_choice, dict):
        _check_named(tool_choice, [tool.function.name for tool in tools if tool.function])
    elif tool_choice not in TOOL_CHOICES:
        raise _bad_choice()


def check_response_format(response_format: ResponseFormat | None) -> None:
    """A schema where one is needed, of a bounded size.

    Raises:
        InvalidRequestError: naming the field.
    """
    if response_format is None:
        return
    if response_format.type == "json_schema":
        if response_format.json_schema is None:
            raise InvalidRequestError(
                "`response_format.json_schema` is missing.",
                param="response_format.json_schema",
                code="missing_field",
            )
        check_schema(response_format.json_schema.schema, "response_format.json_schema.schema")
    elif response_format.type == "structural_tag":
        tag = [response_format.format, response_format.structures, response_format.triggers]
        check_schema(tag, "response_format")


def check_structured_outputs(structured_outputs: StructuredOutputs | None) -> None:
    """One kind of constraint, of a bounded size.

    Raises:
        InvalidRequestError: naming the field.
    """
    if structured_outputs is None:
        return
    kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    if sum(getattr(structured_outputs, kind) is not None for kind in kinds) != 1:
        raise InvalidRequestError(
            f"`structured_outputs` takes exactly one of: {', '.join(kinds)}.", param="structured_outputs"
        )
    schema = structured_outputs.json
    if isinstance(schema, str):
        try:
            schema = parse_object(schema.encode())
        except InvalidRequestError:
            raise InvalidRequestError(
                "`structured_outputs.json` must be a schema: an object, or the JSON text of one.",
                param="structured_outputs.json",
            ) from None
    check_schema(schema, "structured_outputs.json")
    check_schema(structured_outputs.choice, "structured_outputs.choice")


def check_schema(schema: Any, param: str) -> None:
    """The size of a schema and of each pattern in it.

    Raises:
        InvalidRequestError: too large, or a pattern that is no text.
    """
    if not isinstance(schema, dict | list):
        return
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidRequestError(
            f"`{param}` may have at most {MAX_SCHEMA_BYTES} bytes as JSON.", param=param
        )
    for pattern in _patterns(schema):
        if len(pattern) > MAX_PATTERN:
            raise InvalidRequestError(
                f"`{param}` has a `pattern` of more than {MAX_PATTERN} characters.", param=param
            )


def _check_tool(tool: Tool, param: str) -> None:
    if tool.type != "function":
        raise InvalidRequestError(
            "Only tools of type `function` can be served here.", param=f"{param}.type", code="unsupported"
        )
    if tool.function is None:
        raise InvalidRequestError(
            f"`{param}.function` is missing.", param=f"{param}.function", code="missing_field"
        )
    check_schema(tool.function.parameters, f"{param}.function.parameters")


def _check_named(choice: dict[str, Any], names: Iterable[str]) -> None:
    if choice.get("type", "function") != "function":
        raise InvalidRequestError(
            "`tool_choice` can only name a function here: `allowed_tools` and `custom` cannot be served.",
            param="tool_choice.type",
            code="unsupported",
        )
    function = choice.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad_choice()
    if function["name"] not in names:
        raise InvalidRequestError("`tool_choice` names none of `tools`.", param="tool_choice")


def _bad_choice() -> InvalidRequestError:
    return InvalidRequestError(
        "`tool_choice` must be one of none, auto, required,"
        ' or {"type": "function", "function": {"name": ...}}.',
        param="tool_choice",
    )


def _patterns(schema: Any) -> Iterator[str]:
    """Every text that a schema gives as a regular expression. (A property that is called `pattern` has a
    schema as its value, not a text.)"""
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("pattern"), str):
                yield value["pattern"]
            if isinstance(value.get("patternProperties"), dict):
                yield from value["patternProperties"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
