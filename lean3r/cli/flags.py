"""Options classes of the library as flags of a command: name, help text and default come from the declaration."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import tyro

from lean3r.cli.options import library_option
from lean3r.options import Options, options_of, type_of

Group = TypeVar("Group", bound=Options, covariant=True)


class Flags(Protocol[Group]):
    """The flags of one options class, with the values from the command line."""

    @property
    def options(self) -> Group:
        """The options; UsageError if their values are invalid or contradict each other."""
        ...


class _Values:
    group: ClassVar[Any]

    @property
    def options(self) -> Any:
        return self.group(**vars(self))


def flags(group: type[Group]) -> type[Flags[Group]]:
    """The dataclass with a flag for each option of a class; cached."""
    return _flags(group)


@cache
def _flags(group: type) -> type:
    fields = [
        (f.name, Annotated[_flag_type(f, group), library_option(group, f.name)], dataclasses.field(default=f.default))
        for f in options_of(group).values()
    ]
    return dataclasses.make_dataclass(group.__name__, fields, bases=(_Values,), namespace={"group": group})


def of(group: type[Group]) -> Any:
    """The annotation for the flags of an options class, without a prefix."""
    return tyro.conf.arg(name="", constructor=flags(group))


def _flag_type(option: dataclasses.Field[Any], group: type) -> Any:
    """The type that tyro reads a flag as."""
    parse = option.metadata["parse"]
    if parse is None:
        return type_of(option, group)
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
