"""Options of the library as flags of a command: names, help and defaults come from where they are declared."""

from __future__ import annotations

import dataclasses
import sys
import typing
from functools import cache
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import tyro

from lean3r.cli.options import declared
from lean3r.options import Options, options_of

Group = TypeVar("Group", bound=Options, covariant=True)


class Flags(Protocol[Group]):
    """The values of one class of options, as they stand on the command line."""

    @property
    def options(self) -> Group:
        """The options; UsageError where they make no sense."""
        ...


class _Values:
    group: ClassVar[Any]

    @property
    def options(self) -> Any:
        return self.group(**vars(self))


def flags(group: type[Group]) -> type[Flags[Group]]:
    """A dataclass with a flag for each option of a class; always the same one."""
    return _flags(group)


@cache
def _flags(group: type) -> type:
    names = vars(sys.modules[group.__module__]) | vars(typing)
    fields = [
        (f.name, Annotated[_kind(f, names), declared(group, f.name)], dataclasses.field(default=f.default))
        for f in options_of(group).values()
    ]
    return dataclasses.make_dataclass(group.__name__, fields, bases=(_Values,), namespace={"group": group})


def of(group: type[Group]) -> Any:
    """For an annotation: flags of a class of options, without a prefix."""
    return tyro.conf.arg(name="", constructor=flags(group))


def _kind(option: dataclasses.Field[Any], names: dict[str, Any]) -> Any:
    """The type that a flag is read as."""
    parse = option.metadata["parse"]
    if parse is None:
        return eval(str(option.type), names)  # annotations are text; those of options name no types that are not there
    return Annotated[
        Any,
        tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=option.metadata["metavar"],
            instance_from_str=lambda given: parse(given[0]),
            is_instance=lambda _: True,
            str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else str(value)],
        ),
    ]
