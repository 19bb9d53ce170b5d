from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

import mempool

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
        (HEADER + "0,alloc,0,x,0\n", "not a trace"),
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


def test_bad_arguments(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "0,alloc,0,1099511627776,0\n")
    wrong: list[dict[str, object]] = [
        *({"scale": scale} for scale in (0, -1, float("nan"))),
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


def test_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "0,alloc,0,33554432,0\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mempool", "replay", *arguments], capture_output=True, text=True, timeout=100
        )

    done = run(str(path), "--scale", "1/16")
    assert done.returncode == 0, done.stderr
    assert "2.00 MiB (1.0000 of live)" in done.stdout
    for bad in ((str(path), "--scale", "x"), (str(path), "--backend", "gpu"), ("/no/such/trace",), (__file__,)):
        done = run(*bad)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
