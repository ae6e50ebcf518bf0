"""A tool is a typed function: its docstring and annotations are what the model sees, its types what it must keep to."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_type_hints, overload

import msgspec

from rollstream.schemas.errors import RollstreamError, SettingsError
from rollstream.schemas.tasks import ToolSpec
from rollstream.schemas.tools import ToolStatus
from rollstream.tool_workers.arguments import InvalidArgumentsError, parse_object
from rollstream.tool_workers.docstrings import parse_docstring
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.tool_resources import ToolResource
from rollstream.tool_workers.tool_secrets import NAME as SECRET_NAME
from rollstream.tool_workers.tool_secrets import Secrets
from rollstream.tool_workers.tool_states import ToolState

ToolFunction = Callable[..., Any] | Callable[..., Awaitable[Any]]
F = TypeVar("F", bound=ToolFunction)

DEFAULT_TIMEOUT_S = 600.0
_TOOL_ATTRIBUTE = "__rollstream_tool__"


class ToolError(RollstreamError):
    """Raised by a tool for what the caller did wrong; the model reads the message after ``Error: ``."""


@dataclass(frozen=True)
class ToolOutput:
    """What a tool may return instead of a plain value, to choose the status."""

    content: str
    status: ToolStatus = "ok"
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """What is to be known of the call besides its text; see ``signals.py``."""


@dataclass(frozen=True)
class TimeLimit:
    """How long this call may take. Take a parameter of this type to be told; it is no argument of the model's."""

    timeout_s: float


@dataclass(frozen=True)
class SessionKey:
    """Which session the call belongs to; None: to none. Take a parameter of this type to be told.

    An incarnation is never used again: what is kept for it may be forgotten when the session is closed.
    """

    incarnation: str | None


@dataclass(frozen=True)
class Tool:
    """A function and how it is called.

    Attributes:
        timeout_s: longest time a call may take; a call may ask for less.
        sandbox_parameter: name of the parameter that is given the session's sandbox; None: the tool needs none.
        is_stateful: calls of one episode share a sandbox.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: ToolFunction
    arguments_type: type[msgspec.Struct]
    timeout_s: float
    is_idempotent: bool
    is_stateful: bool
    sandbox_parameter: str | None
    time_limit_parameter: str | None
    session_key_parameter: str | None = None
    provided: Mapping[str, type[ToolState | ToolResource | Secrets]] = field(
        default_factory=dict[str, "type[ToolState | ToolResource | Secrets]"]
    )
    """Parameters that the worker fills in: a session's state, what is shared by all calls, secrets."""
    secrets: tuple[str, ...] = ()
    """Names of the secrets it is given."""

    @property
    def needs_sandbox(self) -> bool:
        """Whether it runs code that must be isolated."""
        return self.sandbox_parameter is not None

    def spec(self, toolset: str = "default") -> ToolSpec:
        """The tool as tasks carry it."""
        return ToolSpec(
            name=self.name,
            description=self.description,
            parameters=self.parameters,
            toolset=toolset,
            is_stateful=self.is_stateful,
            is_idempotent=self.is_idempotent,
        )

    def parse(self, arguments: str) -> dict[str, Any]:
        """The keyword arguments of the function; types must match exactly, nothing is converted.

        Raises:
            InvalidArgumentsError: what is wrong, for the model to read.
        """
        given = parse_object(arguments)
        try:
            values = msgspec.convert(given, type=self.arguments_type)
        except (msgspec.MsgspecError, ValueError) as error:
            raise InvalidArgumentsError(str(error)) from error
        return {name: getattr(values, name) for name in self.arguments_type.__struct_fields__}


@overload
def tool(function: F, /) -> F: ...
@overload
def tool(
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    is_idempotent: bool = True,
    stateful: bool | None = None,
    secrets: Sequence[str] = (),
) -> Callable[[F], F]: ...
def tool(
    function: F | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    is_idempotent: bool = True,
    stateful: bool | None = None,
    secrets: Sequence[str] = (),
) -> F | Callable[[F], F]:
    """Declare a function, sync or async, as a tool; it can still be called as before.

    The docstring is the description, its ``Args:`` section describes the arguments. A parameter annotated ``Sandbox``
    is given the sandbox of the caller's session, one annotated ``TimeLimit`` the time the call has, one annotated with
    a subclass of ``ToolState`` the session's state of that kind, with one of ``ToolResource`` what all calls share, and
    one annotated ``Secrets`` the secrets.

    Args:
        function: the function, when used without parentheses.
        name: what the model calls it; by default the function's name.
        timeout_s: longest time a call may take, in seconds.
        is_idempotent: whether running a call twice is harmless. If not, a call whose first run may have happened is
            answered ``outcome_unknown``.
        stateful: whether calls of one episode share the sandbox; by default, whether there is one, or a state.
        secrets: names of secrets that the worker's settings or environment must hold.

    Raises:
        SettingsError: an annotation or the docstring is missing, or the options contradict one another.
    """

    def declare(function: F) -> F:
        declared = build_tool(
            function,
            name=name,
            timeout_s=timeout_s,
            is_idempotent=is_idempotent,
            stateful=stateful,
            secrets=secrets,
        )
        setattr(function, _TOOL_ATTRIBUTE, declared)
        return function

    return declare if function is None else declare(function)


def declared_tool(value: object) -> Tool | None:
    """The tool a function was declared as by ``@tool``."""
    found = getattr(value, _TOOL_ATTRIBUTE, None)
    return found if isinstance(found, Tool) else None


def build_tool(
    function: ToolFunction,
    *,
    name: str | None,
    timeout_s: float,
    is_idempotent: bool,
    stateful: bool | None,
    secrets: Sequence[str] = (),
) -> Tool:
    """What ``@tool`` makes of a function."""
    name = name or function.__name__
    docstring = parse_docstring(function.__doc__)
    if not docstring.description:
        raise SettingsError(f"tool {name!r} has no docstring: the model would not know what it is for")
    if timeout_s <= 0:
        raise SettingsError(f"tool {name!r}: timeout_s is {timeout_s!r}, expected a positive number of seconds")
    hints = get_type_hints(function, include_extras=True)
    sandbox_parameter, time_limit_parameter = (_parameter_of(hints, kind) for kind in (Sandbox, TimeLimit))
    session_key_parameter = _parameter_of(hints, SessionKey)
    provided = {parameter: kind for parameter, kind in hints.items() if parameter != "return" and _is_provided(kind)}
    injected = {sandbox_parameter, time_limit_parameter, session_key_parameter, *provided}
    keeps_state = any(issubclass(kind, ToolState) for kind in provided.values())
    has_state = sandbox_parameter is not None or keeps_state
    if stateful and not has_state:
        raise SettingsError(
            f"tool {name!r} is stateful but takes no parameter of type Sandbox or ToolState: nothing holds its state"
        )
    if stateful is False and keeps_state:
        raise SettingsError(f"tool {name!r} takes a ToolState, which sessions have, but is declared stateful=False")
    _check_secrets(name, provided, secrets)
    arguments_type = _arguments_type(function, name, hints, injected, docstring.arguments)
    return Tool(
        name=name,
        description=docstring.description,
        parameters=_parameters_schema(arguments_type),
        function=function,
        arguments_type=arguments_type,
        timeout_s=timeout_s,
        is_idempotent=is_idempotent,
        is_stateful=has_state if stateful is None else stateful,
        sandbox_parameter=sandbox_parameter,
        time_limit_parameter=time_limit_parameter,
        session_key_parameter=session_key_parameter,
        provided=provided,
        secrets=tuple(secrets),
    )


def _is_provided(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, (ToolState, ToolResource, Secrets))


def _check_secrets(name: str, provided: Mapping[str, type], secrets: Sequence[str]) -> None:
    if wrong := [secret for secret in secrets if not SECRET_NAME.fullmatch(secret)]:
        raise SettingsError(f"tool {name!r}: secrets {wrong} are no names like SEARCH_KEY")
    if bool(secrets) != any(issubclass(kind, Secrets) for kind in provided.values()):
        raise SettingsError(
            f"tool {name!r} declares the secrets {list(secrets)}: name them in @tool(secrets=...) and take a parameter "
            "annotated Secrets, or neither"
        )


def _parameter_of(hints: dict[str, Any], kind: object) -> str | None:
    return next((name for name, hint in hints.items() if hint is kind and name != "return"), None)


def _arguments_type(
    function: ToolFunction, name: str, hints: dict[str, Any], injected: set[str | None], descriptions: dict[str, str]
) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in injected:
            continue
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise SettingsError(f"tool {name!r}: parameter {parameter.name!r} cannot be given by name")
        if parameter.name not in hints:
            raise SettingsError(f"tool {name!r}: parameter {parameter.name!r} has no annotation")
        annotation = hints[parameter.name]
        if description := descriptions.get(parameter.name):
            annotation = Annotated[annotation, msgspec.Meta(description=description)]
        if parameter.default is parameter.empty:
            fields.append((parameter.name, annotation))
        else:
            fields.append((parameter.name, annotation, parameter.default))
    if unknown := descriptions.keys() - hints.keys():
        raise SettingsError(f"tool {name!r}: the docstring describes {sorted(unknown)}, which are no parameters")
    return msgspec.defstruct(name, fields, kw_only=True, frozen=True, forbid_unknown_fields=True)


def _parameters_schema(arguments_type: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema of the arguments object: only what a model needs to know."""
    (schema,), definitions = msgspec.json.schema_components([arguments_type], ref_template="#/$defs/{name}")
    own: dict[str, Any] = definitions.pop(schema["$ref"].rpartition("/")[2])
    parameters = {"type": "object", "properties": own["properties"], "required": own["required"]}
    return parameters | {"$defs": definitions} if definitions else parameters
