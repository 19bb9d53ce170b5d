"""One process of the CUDA benchmark: one device, one allocator, one task, one line of JSON.

python -m benchmarks.cuda.worker --device real --side mempool --loops loops.so replay trace.csv.gz [--tight]
python -m benchmarks.cuda.worker --device stand-in --side native --loops loops.so smallest trace.csv.gz
python -m benchmarks.cuda.worker --device real --side native --loops loops.so train varying
python -m benchmarks.cuda.worker --device real --side native --loops loops.so pairs | operators | cold | holes | races …
python -m benchmarks.cuda.worker --device real --side native facts
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cuda import DEVICES, SIDES
from benchmarks.cuda.allocation import cold, holes, operators, pairs
from benchmarks.cuda.device import Device, DeviceMissing, open_device
from benchmarks.cuda.sleeping import sleep
from benchmarks.cuda.streams import offload, races
from benchmarks.cuda.traces import replay, smallest
from benchmarks.cuda.training import train

Options = argparse.Namespace
TASKS: dict[str, Callable[[Device, Options], dict[str, Any]]] = {
    "facts": lambda device, options: device.facts(),
    "pairs": lambda device, options: pairs(device),
    "operators": lambda device, options: operators(device),
    "cold": lambda device, options: cold(device, options.scale),
    "holes": lambda device, options: holes(device, options.scale),
    "races": lambda device, options: races(device, options.scale),
    "offload": lambda device, options: offload(device),
    "train": lambda device, options: train(device, options.argument, options.steps),
    "sleep": lambda device, options: sleep(device, options.scale),
    "replay": lambda device, o: replay(device, o.argument, o.capacity, o.tight, o.repeats),
    "smallest": lambda device, options: smallest(device, options.argument),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", required=True, choices=DEVICES)
    parser.add_argument("--side", required=True, choices=SIDES)
    parser.add_argument("--loops")
    parser.add_argument("--capacity", type=int)
    parser.add_argument("--tight", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("argument", nargs="?")
    options = parser.parse_args(arguments)
    try:
        device = open_device(options.device, options.side, options.loops)
    except DeviceMissing as error:
        sys.exit(f"{error}.")
    print(json.dumps(TASKS[options.task](device, options)))
    sys.stdout.flush()
    os._exit(0)  # without torch's shutdown, which is not measured


if __name__ == "__main__":
    main()
