"""How commands take their arguments: an option that is meant once may be given once, and what is wrong is said in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from aiovmm.errors import AiovmmError, UsageError
from aiovmm.runtime.stdio import end_by_exceptions

__all__ = ["NAMED", "OneLineCommand", "OneLineGroup", "Seconds", "once", "version_option"]


@contextmanager
def one_line() -> Iterator[None]:
    """Usage errors of click become UsageErrors, which are printed as one line. A command without arguments shows its help."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as exc:
        raise UsageError(" ".join(exc.format_message().split())) from exc


@contextmanager
def interruptible() -> Iterator[None]:
    """A KeyboardInterrupt goes by click, which has words of its own for it."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise AiovmmError("interrupted") from exc


class OneLineCommand(click.Command):
    """A command whose usage errors are one line, and so is an interrupt."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises UsageError."""
        with one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Raises AiovmmError."""
        end_by_exceptions()
        with interruptible():
            return super().invoke(ctx)


class OneLineGroup(click.Group):
    """Likewise, with all its commands."""

    command_class = OneLineCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises UsageError."""
        with one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Raises AiovmmError."""
        with interruptible():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises UsageError."""
        with one_line():
            return super().resolve_command(ctx, args)


class _Named(click.Path):
    """A path. An empty one, as a variable makes that nobody has set, is none: it would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: say a path", param, ctx)
        return super().convert(value, param, ctx)


NAMED = _Named(path_type=Path)
"""The type of an argument or option that is a Path."""


class Seconds(click.FloatRange):
    """Seconds, not negative. NaN is in no range, though no comparison says so."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(0, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        seconds = super().convert(value, param, ctx)
        if seconds != seconds:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return seconds


def once(*names: str, default: Any = None, **settings: Any) -> Callable[[Any], Any]:
    """An option that cannot be given twice; its value, or `default`."""

    def one(_ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise UsageError(f"{param.opts[0]}: is given twice")
        return values[0] if values else default

    return click.option(*names, multiple=True, callback=one, **settings)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib import metadata

        click.echo(f"aiovmm {metadata.version('aiovmm')}")
        ctx.exit()


version_option = click.option(
    "-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Say the version."
)
"""Says the version and ends."""
