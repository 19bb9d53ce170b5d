"""The command ``mempool run``: runs a script with mempool under its tensors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import click

import mempool
from mempool._files import check_writable
from mempool.cli.ending import Ending
from mempool.cli.script import Target, execute
from mempool.errors import ConfigError, PoolStateError
from mempool.ledger import join, loads_entry_points


class _RunCommand(click.Command):
    """Passes arguments behind the script, ``-m NAME`` or ``-c CODE`` on to the script, as ``python`` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        takes_value = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        index = 0
        while index < len(args):
            arg = args[index]
            if arg == "--":
                break
            if arg == "-" or not arg.startswith("-"):
                args = [*args[:index], "--", *args[index:]]
                break
            if arg[:2] in ("-m", "-c"):
                attached = [arg[2:]] if len(arg) > 2 else []
                args = [*args[:index], arg[:2], "--", *attached, *args[index + 1 :]]
                break
            index += 2 if arg in takes_value else 1
        return super().parse_args(ctx, args)


def _can_join() -> bool:
    """Whether there can be a ledger. Without a limit the script runs without one, too, on a read-only system, say."""
    try:
        join()
    except (ConfigError, PoolStateError) as error:
        click.echo(f"mempool: processes that the script starts run without mempool: {error}", err=True)
        return False
    return True


def _check_out(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    path = path.absolute()  # the script may change the current folder
    try:
        check_writable(path)
    except OSError as error:
        raise click.BadParameter(f"'{path}' cannot be written: {error.strerror}.") from error
    return path


@click.command("run", cls=_RunCommand, options_metavar="[OPTIONS]")
@click.option("--device", default="cpu", show_default=True, help="Whose tensors: 'cpu', 'cuda', 'cuda:N' or 'pinned'.")
@click.option("--limit", help="Most bytes that the script and its children may hold: '8GiB', '50%'.")
@click.option("--soft-limit", help="Held bytes above which memory is trimmed.")
@click.option(
    "--snapshot",
    type=click.Path(path_type=Path),
    callback=_check_out,
    help="Write a snapshot at the end, with a history: `mempool stats` shows what is live then, and was at the peak.",
)
@click.option(
    "--children/--no-children",
    default=True,
    help="Whether processes that the script starts have mempool, too, under the same limit (default: they have).",
)
@click.option("--json", "as_json", is_flag=True, help="The summary as a line of JSON, for programs.")
@click.option(
    "--summary",
    type=click.Path(path_type=Path),
    callback=_check_out,
    help="Write the summary there, not to standard error.",
)
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module, as for python -m.")
@click.option("-c", "as_code", is_flag=True, help="SCRIPT is the code itself, as for python -c.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    script: str,
    args: tuple[str, ...],
    device: str,
    limit: str | None,
    soft_limit: str | None,
    snapshot: Path | None,
    children: bool,
    as_json: bool,
    summary: Path | None,
    as_module: bool,
    as_code: bool,
) -> Callable[[], None]:
    """Run SCRIPT with mempool under its tensors, and print a summary at its end (to standard error).

    SCRIPT is what python takes: a file, a folder or zip file with __main__.py, or - for standard input. It needs no
    change, and its exit status is passed on. The summary comes last, behind its threads and exit handlers, also after
    SIGTERM, unless the script handles that itself. torch is imported before the script: settings that torch reads at
    its import must be in the environment.

    Processes that the script starts have mempool, too, whether they are forked, spawned or launched (torchrun, uvicorn
    workers, joblib, Ray). The limit is one for all of them, and the summary has a line for each that took memory.
    """
    target = Target("module" if as_module else "code" if as_code else "file", script, args)
    problem = target.problem()
    if problem is not None:
        raise click.BadParameter(problem, param_hint="SCRIPT")
    if children and limit is not None and not loads_entry_points():
        raise click.UsageError(
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 is set: processes that the script starts would run without the limit. "
            "Unset it, or give --no-children."
        )
    if os.environ.get("MEMPOOL_DISABLE") == "1":
        what = "mempool" if limit is None else "mempool, and without the limit"
        click.echo(f"mempool: MEMPOOL_DISABLE=1 is set: the script runs without {what}", err=True)
    if children and limit is None:
        children = _can_join()
    mempool.enable(device, limit=limit, soft_limit=soft_limit, shared=children)
    if snapshot is not None:
        mempool.record_history(True, device)
    Ending(device, snapshot, summary, as_json).arm()
    return functools.partial(execute, target)
