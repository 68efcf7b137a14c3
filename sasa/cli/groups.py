"""Groups of options: a command takes a dataclass, and the command line offers its fields.

So defaults and help texts stand where the settings are defined, and settings travel as one value.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Command = Callable[..., None]


def expand(group: str, **before: str) -> Callable[[Command], Command]:
    """Decorates a command whose keyword `group` is a dataclass: each field becomes an option.

    A field is an option if its annotation holds a `typer.Option`, or if its metadata comes from
    `sasa.core.settings.option`; other fields keep the dataclass's defaults. The options' defaults
    are the fields of the keyword's default value, or the dataclass's defaults if it has none.

    Args:
        before: the order of the options in `--help`. By default they stand where the keyword does;
            `model="method seed"` puts the fields `method` and `seed` before the keyword `model`.
    """
    elsewhere = " ".join(before.values()).split()

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        settings = signature.parameters[group].annotation
        options = _options(signature.parameters[group])
        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            parameters += [options[field] for field in before.get(name, "").split()]
            if name == group:
                parameters += [options[field] for field in options if field not in elsewhere]
            else:
                parameters.append(parameter)

        @functools.wraps(command)
        def expanded(*args: Any, **given: Any) -> None:
            values = {field: given.pop(option.name) for field, option in options.items()}
            command(*args, **given, **{group: settings(**values)})

        expanded.__annotations__ = {}  # the signature has them all
        expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return expanded

    return decorate


def given(group: DataclassInstance) -> dict[str, Any]:
    """The fields of a group that are not None, by name."""
    values = {field.name: getattr(group, field.name) for field in fields(group)}
    return {name: value for name, value in values.items() if value is not None}


def _options(group: inspect.Parameter) -> dict[str, inspect.Parameter]:
    """The fields of a group that are options, as parameters of a command.

    Their names begin with the group's, so that two groups may have a field of the same name.
    """
    hints = get_type_hints(group.annotation, include_extras=True)
    options = {}
    for field in fields(group.annotation):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated and "help" not in field.metadata:
            continue
        default = (
            field.default if group.default is group.empty else getattr(group.default, field.name)
        )
        options[field.name] = inspect.Parameter(
            f"{group.name}_{field.name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=group.empty if default is MISSING else default,
            annotation=_with_flags(field, hint),
        )
    return options


def _with_flags(field: Field[Any], hint: Any) -> Any:
    """A field's type and its option, which is named after the field unless it has a name."""
    default_flag = f"--{field.name.replace('_', '-')}"
    if get_origin(hint) is not Annotated:
        about = field.metadata
        flags = about["flags"] or (default_flag,)
        return Annotated[
            hint,
            typer.Option(
                *flags, help=about["help"], min=about["least"], show_default=about["shown"] or True
            ),
        ]
    info: OptionInfo = copy(hint.__metadata__[0])
    if info.default is ... and not info.param_decls:
        info.param_decls = (default_flag,)
    return Annotated[hint.__origin__, info]
