"""One limit on a device's memory for several processes: devices are told apart by their UUIDs."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., str]

CHILD = """
import os, torch, mempool
torch.backends.cudnn.enabled = False
index = int(os.environ["DEVICE"])
block = torch.empty(600 << 20, dtype=torch.uint8, device=f"cuda:{index}")
try:
    torch.empty(300 << 20, dtype=torch.uint8, device=f"cuda:{index}")
    print("allowed")
except torch.OutOfMemoryError as error:
    info = mempool.oom_info(error)
    print(info["reason"], info["limit"] >> 20, info["held_by_all"] >> 20)
"""

PARENT = f"""
import os, subprocess, sys, torch, mempool
torch.backends.cudnn.enabled = False
print(mempool.enable("cuda", limit="1000MiB", shared=True))
block = torch.empty(200 << 20, dtype=torch.uint8, device="cuda:0")
for index in range(torch.cuda.device_count()):
    environment = {{**os.environ, "DEVICE": str(index)}}
    subprocess.run([sys.executable, "-c", {CHILD!r}], env=environment, check=True)
report = mempool.shared_report("cuda:0")
print(len(report.processes), report.held >> 20, report.peak_held >> 20, report.limit >> 20)
"""


def test_processes_share_a_limit_on_each_device(run_on_device: Run) -> None:
    _, first, *others, report = run_on_device(PARENT, CUDA_STANDIN_DEVICES="2").splitlines()
    assert first == "shared_limit 1000 800"
    assert set(others) <= {"allowed"}
    processes, held, peak, limit = map(int, report.split())
    assert (processes, held, limit) == (2, 200, 1000)
    assert 800 <= peak <= 1000  # the request that was refused may have got a part of its memory first


def test_a_percentage_is_of_the_device_and_turned_into_bytes_once(run_on_device: Run) -> None:
    program = PARENT.replace('"1000MiB"', '"50%"').replace("600 <<", "1 <<")
    whole = int(run_on_device("import torch; print(torch.cuda.get_device_properties(0).total_memory >> 20)"))
    assert run_on_device(program).splitlines()[-1].split()[-1] == str(whole // 2)


def test_a_run_has_its_children_under_its_limit(run_on_device: Run) -> None:
    run = "import sys, mempool.cli; sys.argv = ['mempool', 'run', *{arguments!r}]; mempool.cli.main()"
    script = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"
    arguments = ["--device", "cuda", "--limit", "800MiB", "--json", "--summary", "/dev/stdout", "-c", script]
    said, summary = run_on_device(run.format(arguments=arguments), DEVICE="0").splitlines()
    assert said == "shared_limit 800 600"
    assert '"cuda-' in summary  # this process has not used the device itself


def test_a_device_that_was_made_before_is_limited_too(run_on_device: Run) -> None:
    said = run_on_device("""
import torch, mempool
torch.backends.cudnn.enabled = False
print(mempool.get_limit("cuda:0"))
mempool.enable("cuda", limit="64MiB", shared=True)
print(mempool.get_limit("cuda:0", shared=True) >> 20)
try:
    torch.empty(100 << 20, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    print(mempool.oom_info(error)["reason"])
""")
    assert said.splitlines() == ["None", "64", "shared_limit"]


def test_a_limit_of_a_device_that_was_made_before_holds(run_on_device: Run) -> None:
    said = run_on_device("""
import torch, mempool
torch.backends.cudnn.enabled = False
mempool.memory_stats("cuda:0")
mempool.enable("cuda", limit="64MiB")
print(mempool.get_limit("cuda:0") >> 20)
""")
    assert said.splitlines() == ["64"]
