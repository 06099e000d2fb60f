"""The command line: its commands, and the exit status of errors."""

import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer
from rich.text import Text

from weightwatch.cli.build import build
from weightwatch.cli.calibrate import calibrate
from weightwatch.cli.check import check
from weightwatch.cli.compare import compare
from weightwatch.cli.demo import demo
from weightwatch.cli.exit_status import BAD_INPUT, FAULT
from weightwatch.cli.init import init
from weightwatch.cli.outlets import opened
from weightwatch.cli.push import push
from weightwatch.cli.report import report
from weightwatch.cli.scan import scan
from weightwatch.cli.show import show
from weightwatch.cli.steer import steer
from weightwatch.report.console import console
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable, sentence

app = typer.Typer(name="weightwatch", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weightwatch {version('weightwatch')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Show how far a fine-tune moves a language model's weights along behaviour directions."""


for command in (demo, init, check, build, show, report, compare, scan, calibrate, steer, push):  # the order of --help
    app.command()(command)


def run() -> None:
    """Run the command line, and exit with its status.

    The status is 1 only if an alert fired, whatever happens to the output. A ``WeightWatchError`` prints one message
    and exits with 2, and so does output that can't be written, unless its reader closed the pipe. Any other exception
    prints its traceback and exits with 3.
    """
    sys.stdout, output = opened(sys.stdout)
    sys.stderr, _ = opened(sys.stderr)
    status = _status()
    if sys.stdout is not None:
        sys.stdout.flush()
    fault = output.fault if output is not None else None
    if fault is not None and not isinstance(fault, BrokenPipeError):
        _complain(f"the output can't be written ({fault.strerror}). Make room, or write it elsewhere.")
        status = status or BAD_INPUT
    if sys.stderr is not None:
        sys.stderr.flush()
    raise SystemExit(status)


def _status() -> int:
    """Run the command, tell what went wrong, and return the exit status."""
    try:
        app()
    except WeightWatchError as error:
        _complain(sentence(error))
        return BAD_INPUT
    except SystemExit as end:
        # typer also exits with 1 at the end of the input and at a broken pipe, and so may any library.
        if end.code in (None, 0, BAD_INPUT) or isinstance(end.__context__, typer.Exit):
            return int(end.code or 0)
        return _fault(end.__context__ or end)
    except BaseException as error:  # also what is no Exception, with which Python would exit with 1
        return _fault(error)
    return 0


def _complain(message: str) -> None:
    console(stderr=True).print(Text.assemble(("weightwatch: ", "bold red"), message))


def _fault(error: BaseException) -> int:
    for line in "".join(traceback.format_exception(error)).splitlines():
        print(printable(line), file=sys.stderr)
    return FAULT
