"""``replay`` reads traces, refuses what is none, and reports what a replay takes."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import mempool

Command = Callable[..., "subprocess.CompletedProcess[str]"]

HEADER = "# made by hand\nseq,op,id,bytes,stream\n"


def write(path: Path, events: str) -> Path:
    path.write_text(HEADER + events)
    return path


def test_a_replay_reports_what_it_took(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "0,alloc,0,3145728,0\n1,alloc,1,100,0\n2,record_stream,0,,1\n3,free,0,,0\n4,step,0,,0\n5,alloc,2,2097153,0\n",
    )
    report = mempool.replay(path)
    assert report.events == 4
    assert report.peak_live_bytes == 3145728 + 100
    assert report.end_live_bytes == 2097153 + 100
    assert report.peak_held_bytes == 4 << 20  # 3 MiB in two granules; the small block lies behind them
    assert report.map_calls == report.commits == 1
    assert report.map_calls_in_last_half == 0
    assert report.held_per_live == report.peak_held_bytes / report.peak_live_bytes
    assert mempool.replay(path, backend="host").peak_held_bytes == report.peak_held_bytes
    assert mempool.replay(path, scale=2).peak_live_bytes == 2 * report.peak_live_bytes


def test_packed_traces_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"bytes,pool,op,id\n4096,a,alloc,0\n,a,free,0\n"))
    report = mempool.replay(path)
    assert (report.events, report.peak_live_bytes, report.end_live_bytes) == (2, 4096, 0)


def test_scattered_memory_is_moved_not_taken_anew(tmp_path: Path) -> None:
    lines = [f"0,alloc,{i},4194304,0" for i in range(16)]
    lines += [f"0,free,{i},,0" for i in range(0, 16, 2)]
    lines += ["0,alloc,16,33554432,0"]
    report = mempool.replay(write(tmp_path / "t.csv", "\n".join(lines)))
    assert report.peak_held_bytes == report.peak_live_bytes == 64 << 20
    assert report.moves > 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "header"),
        ("a,b\n1,2\n", "header"),
        (HEADER + "0,alloc,0\n", "line 3"),
        (HEADER + "0,alloc,5,10,0\n", "line 3"),
        (HEADER + "0,alloc,0,-1,0\n", "line 3"),
        (HEADER + "0,alloc,0,x,0\n", "not a trace: line 3: bytes is 'x'"),
        (HEADER + "0,alloc,x,5,0\n", "not a trace: line 3: id is 'x'"),
        (HEADER + "0,alloc,0,5,0\n1,free,0,,x\n", "line 4: stream is 'x'"),
        (HEADER + "0,alloc,0,5,0\n1,free,,,0\n", "line 4: id is ''"),
        (HEADER + "0,alloc,0,9223372036854775808,0\n", "line 3: bytes is larger than 63 bits"),
        (HEADER + f"0,alloc,0,{'9' * 5000},0\n", "line 3: bytes is '9999"),
        (HEADER + "0,alloc,0,9223372036854775807,0\n1,alloc,1,9223372036854775807,0\n", "line 4: more bytes are live"),
        (HEADER + f"0,alloc,0,{'9' * 200_000},0\n", "after line 3: field larger"),
        (HEADER.replace("stream", "time_ns") + "0,alloc,0,5,soon\n", "line 3: time_ns is 'soon'"),
        (HEADER + "0,alloc,0,10,0\n1,free,0,,0\n2,free,0,,0\n", "line 5"),
        (HEADER + "0,frobnicate,0,10,0\n", "frobnicate"),
    ],
)
def test_what_is_not_a_trace_is_refused_with_its_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(mempool.TraceError, match=words):
        mempool.replay(path)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress((HEADER + "0,alloc,0,5,0\n").encode())[:-8])
    with pytest.raises(mempool.TraceError, match="not a trace"):
        mempool.replay(path)


def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(HEADER.encode() + b"0,alloc,0,5,0\n0,fr\xffee,0,,0\n")
    with pytest.raises(mempool.TraceError, match=r"after line \d+: 'utf-8' codec"):
        mempool.replay(path)
    path.write_bytes(gzip.compress(HEADER.encode() + b"0,alloc,0,5,0\n")[:-12] + b"\xff" * 12)
    with pytest.raises(mempool.TraceError, match=r"after line \d+: "):
        mempool.replay(path)


def test_a_scale_that_overflows_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "0,alloc,0,4096,0\n")
    for scale in (1e300, 1e16):
        with pytest.raises(mempool.ConfigError, match=r"line 3: scale 1e\+\d+ makes 4096 bytes overflow"):
            mempool.replay(path, scale=scale)
    with pytest.raises(mempool.ConfigError, match="conf: unknown option 'stich'"):
        mempool.replay(path, conf="stich:false")


def test_progress_goes_from_start_to_end_and_can_end_it(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "".join(f"0,alloc,{i},4096,0\n0,free,{i},,0\n" for i in range(20_000)))
    done: list[float] = []
    mempool.replay(path, progress=done.append)
    assert done == sorted(done)
    assert 0 < done[0] < 0.9
    assert done[-1] == 1.0

    def stop(share: float) -> None:
        if share > 0.95:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mempool.replay(path, progress=stop)


def test_several_threads_play_a_trace_in_its_order(tmp_path: Path) -> None:
    lines = []
    for i in range(3000):
        lines.append(f"0,alloc,{i},{4096 * (1 + i % 50)},0")
        if i >= 100:
            lines.append(f"0,free,{i - 100},,0")
    path = write(tmp_path / "t.csv", "\n".join(lines))
    alone, *others = (mempool.replay(path, threads=threads, conf="thread_cache_bytes:0") for threads in (1, 2, 7))
    # Without caches it does not matter whose thread it is, as long as the order is kept.
    for report in others:
        assert report.timeline == alone.timeline
        assert report.peak_held_bytes == alone.peak_held_bytes
        assert report.commits == alone.commits
    assert mempool.replay(path, threads=3).peak_live_bytes == alone.peak_live_bytes


def test_what_ends_one_of_several_threads_ends_the_replay(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "\n".join(f"0,alloc,{i},1048576,0" for i in range(200)))
    with pytest.raises(mempool.OutOfMemoryError):  # in the second thread's turn
        mempool.replay(path, threads=2, capacity="100MiB")

    def stop(share: float) -> None:
        if share > 0.95:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mempool.replay(path, threads=2, progress=stop)


def test_times_may_count_from_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    epoch = 1_790_000_000_000_000_000
    path.write_text(f"op,id,bytes,time_ns\nalloc,0,104857600,{epoch}\nfree,0,,{epoch + 5}\nalloc,1,1000,{2 * epoch}\n")
    assert mempool.replay(path).decommits > 0


def test_bad_arguments(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "0,alloc,0,1099511627776,0\n")
    wrong: list[dict[str, object]] = [
        *({"scale": scale} for scale in (0, -1, float("nan"))),
        *({"threads": threads} for threads in (0, -1, 1025)),
        *(
            {"backend": "gpu"},
            {"device": "xpu"},
            {"device": "cuda", "backend": "host"},
            {"backend": "host", "capacity": 1},
        ),
    ]
    for arguments in wrong:
        with pytest.raises(mempool.ConfigError):
            mempool.replay(path, **arguments)  # type: ignore[arg-type]
    with pytest.raises(mempool.OutOfMemoryError):
        mempool.replay(path, backend="host", scale=64)
    with pytest.raises(OSError, match="No such file"):
        mempool.replay(tmp_path / "missing")


def test_the_command(tmp_path: Path, command: Command) -> None:
    path = write(tmp_path / "t.csv", "0,alloc,0,33554432,0\n")

    done = command("replay", str(path), "--scale", "1/16")
    assert done.returncode == 0, done.stderr
    assert "2.00 MiB (1.0000 of live)" in done.stdout
    for bad, words in (
        ((str(path), "--scale", "x"), "'x' is not a number"),
        ((str(path), "--scale", "1/0"), "'1/0' is not a number"),
        ((str(path), "--scale", "1e300"), "overflow"),
        ((str(path), "--scale", "1e999999999"), "positive number"),
        ((str(path), "--backend", "gpu"), "unknown backend"),
        ((str(path), "--capacity", "4MiB"), "out of memory"),
        ((str(path), "--capacity", "many"), "'many'"),
        ((str(path), "--threads", "0"), "1 to 1,024 threads"),
        (("/no/such/trace",), "cannot read '/no/such/trace'"),
        ((__file__,), "not a trace"),
    ):
        done = command("replay", *bad)
        assert done.returncode in (1, 2)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert "[mempool.oom" not in done.stderr
    done = command("replay", str(path), "--json", "--threads", "2")
    assert json.loads(done.stdout)["peak_live_bytes"] == 32 << 20


def test_the_cuda_benchmark_reads_traces(tmp_path: Path) -> None:
    from benchmarks.cuda.traces import Trace

    path = write(
        tmp_path / "t.csv", "0,alloc,0,100,0\n1,alloc,1,50,1\n2,record_stream,0,,1\n3,free,0,,0\n4,step,0,,0\n"
    )
    trace = Trace.read(path)
    assert [list(column) for column in (trace.ops, trace.ids, trace.sizes, trace.streams)] == [
        [1, 1, 2, 0],
        [0, 1, 0, 0],
        [100, 50, 0, 0],
        [0, 1, 1, 0],
    ]
    assert trace.peak_live == 150
