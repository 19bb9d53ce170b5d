"""torch's allocator settings, in the environment and at run time: limits hold, and what does not is named once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., str]

PRELUDE = """
import warnings, torch, mempool
MIB = 1 << 20

def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]

def limits():
    total = torch.cuda.get_device_properties(0).total_memory
    return [mempool.get_limit(f"cuda:{i}") for i in range(2)], total
"""


@pytest.mark.gpus(2)
def test_a_memory_fraction_of_the_environment_is_a_limit_of_every_device(run_on_device: Run) -> None:
    script = (
        PRELUDE
        + """
assert warned(lambda: mempool.enable("cuda")) == []
torch.zeros(1).to("cuda:0"), torch.zeros(1).to("cuda:1")
found, total = limits()
assert found == [total // 4] * 2, found
assert torch.cuda.get_per_process_memory_fraction() == 0.25
try:
    torch.empty(total // 2, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    assert mempool.oom_info(error)["reason"] == "device_limit"
else:
    raise AssertionError("no limit")
"""
    )
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        run_on_device(script, **{name: "per_process_memory_fraction:0.25"})


def test_of_two_limits_the_lower_holds(run_on_device: Run) -> None:
    script = (
        PRELUDE
        + """
mempool.enable("cuda", limit=LIMIT)
torch.zeros(1).to("cuda:0")
assert mempool.get_limit("cuda:0") == EXPECTED, mempool.get_limit("cuda:0")
"""
    )
    fraction = "per_process_memory_fraction:0.5"
    for limit, expected in (("1 << 30", "1 << 30"), ("'90%'", "torch.cuda.get_device_properties(0).total_memory // 2")):
        run_on_device(script.replace("LIMIT", limit).replace("EXPECTED", expected), PYTORCH_ALLOC_CONF=fraction)


@pytest.mark.gpus(2)
def test_a_memory_fraction_at_run_time_is_a_limit_of_every_device(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
mempool.enable("cuda")
torch.zeros(1).to("cuda:0")
assert warned(lambda: torch._C._accelerator_setAllocatorSettings("per_process_memory_fraction:0.5")) == []
torch.zeros(1).to("cuda:1")  # made after that
found, total = limits()
assert found == [total // 2] * 2, found
mempool.set_limit("1GiB", "cuda:0")
torch._C._accelerator_setAllocatorSettings("expandable_segments:True")  # says nothing of a limit
assert mempool.get_limit("cuda:0") == 1 << 30
try:
    torch._C._accelerator_setAllocatorSettings("per_process_memory_fraction:1.5")
except ValueError as error:
    assert "[0.0, 1.0]" in str(error)
else:
    raise AssertionError("torch took it")
assert mempool.get_limit("cuda:0") == 1 << 30
"""
    )


def test_settings_that_do_not_hold_are_named_in_one_warning(run_on_device: Run) -> None:
    given = (
        "max_split_size_mb:128,roundup_power2_divisions:[256:1,512:2,>:4],graph_capture_record_stream_reuse:True,"
        "per_process_memory_fraction:0.5,expandable_segments:True,pinned_use_background_threads:True"
    )
    script = (
        PRELUDE
        + f"""
def check(texts):
    assert len(texts) == 1, texts
    for word in ("size_mb:128", "divisions:[256:1,512:2,>:4]", "stream_reuse:True"):
        assert word in texts[0], texts
    for word in ("per_process", "expandable", "pinned"):
        assert word not in texts[0], texts

check(warned(lambda: mempool.enable("cuda")) if FIRST else warned(mempool.enable))
torch.zeros(1).cuda()
check(warned(lambda: torch._C._accelerator_setAllocatorSettings({given!r})))
other, = warned(lambda: torch._C._accelerator_setAllocatorSettings("garbage_collection_threshold:0.8"))
assert "decay_ms" in other
"""
    )
    run_on_device(script.replace("FIRST", "True"), PYTORCH_ALLOC_CONF=given)
    run_on_device(script.replace("FIRST", "False"), PYTORCH_ALLOC_CONF=given)


def test_the_backend_that_the_environment_names_is_no_error(run_on_device: Run) -> None:
    """torch checks it against the allocator in place, whenever it reads its settings first."""
    script = (
        PRELUDE
        + """
texts = warned(lambda: mempool.enable("cuda"))
assert [("backend:cudaMallocAsync" in text) for text in texts] == EXPECTED, texts
kept = torch.zeros(MIB).pin_memory().cuda()
assert mempool.memory_allocated("cuda") == 4 * MIB
"""
    )
    run_on_device(script.replace("EXPECTED", "[]"), PYTORCH_ALLOC_CONF="backend:native")
    run_on_device(script.replace("EXPECTED", "[True]"), PYTORCH_ALLOC_CONF="backend:cudaMallocAsync")


def test_a_warning_that_is_an_error_is_raised(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
mempool.enable("cuda")
torch.zeros(1).cuda()
warnings.simplefilter("error")
try:
    torch._C._accelerator_setAllocatorSettings("max_split_size_mb:128")
except UserWarning as error:
    assert "max_split_size_mb:128" in str(error)
else:
    raise AssertionError("no warning")
"""
    )


@pytest.mark.gpus(2)
def test_settings_from_before_hold_and_are_named_too(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
torch._C._accelerator_setAllocatorSettings("per_process_memory_fraction:0.25,max_split_size_mb:128")
(text,) = warned(lambda: mempool.enable("cuda"))
assert "max_split_size_mb:128" in text and "per_process" not in text, text
torch.zeros(1).to("cuda:0"), torch.zeros(1).to("cuda:1")
found, total = limits()
assert found == [total // 4] * 2, found
assert warned(lambda: mempool.enable("cuda")) == []
"""
    )


@pytest.mark.gpus(2)
def test_a_fraction_at_run_time_replaces_the_limit_of_devices_that_come_later_too(run_on_device: Run) -> None:
    run_on_device(
        PRELUDE
        + """
mempool.enable("cuda", limit="1GiB")
torch.zeros(1).to("cuda:0")
torch._C._accelerator_setAllocatorSettings("per_process_memory_fraction:0.5")
torch.zeros(1).to("cuda:1")
found, total = limits()
assert found == [total // 2] * 2, found
"""
    )


def test_what_cuda_honours_is_not_named_when_the_cpu_is_enabled_later(run_on_device: Run) -> None:
    script = PRELUDE + "\nassert warned(lambda: mempool.enable('cuda')) == warned(mempool.enable) == []\n"
    run_on_device(script, PYTORCH_ALLOC_CONF="per_process_memory_fraction:0.5")


def test_only_the_variable_that_torch_reads_counts(run_on_device: Run) -> None:
    script = PRELUDE + "\nassert warned(lambda: mempool.enable('cuda')) == []\n"
    for read in ("expandable_segments:True", ""):
        run_on_device(script, PYTORCH_ALLOC_CONF="max_split_size_mb:128", PYTORCH_CUDA_ALLOC_CONF=read)
