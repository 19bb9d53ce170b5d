"""The command ``mempool``: the group of its commands, and the handling of errors that they share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import NoReturn

import click

import mempool
from mempool._text import printable
from mempool.cli import compress, demo, doctor, options, replay, run, stats


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mempool.__version__, prog_name="mempool")
@click.pass_context
def commands(context: click.Context) -> None:
    """Memory that a PyTorch user can control."""
    if context.invoked_subcommand != run.command.name and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for characters that the terminal's encoding lacks


for module in (run, stats, replay, doctor, options, demo, compress):
    commands.add_command(module.command)


def main() -> None:
    """The entry point. A script is run only once click is done: its exceptions and interrupts are its own."""
    try:
        script: Callable[[], None] | object = commands.main(prog_name="mempool", standalone_mode=False)
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except mempool.OutOfMemoryError as error:  # the lines behind the first are for programs
        _fail(str(error).partition("\n")[0])
    except (mempool.ConfigError, mempool.DeviceError, mempool.SnapshotError, mempool.TraceError) as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of the output has gone: no message
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except OSError as error:
        _fail(str(error))
    if callable(script):
        script()


def _fail(message: str) -> NoReturn:
    click.ClickException(printable(message)).show()
    sys.exit(1)
