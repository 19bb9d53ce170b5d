"""Which of torch's own allocator settings hold with mempool, by their text alone."""

from __future__ import annotations

import pytest

from mempool._torch_settings import ignored_message, ignored_settings, warn_of_ignored


def test_what_mempool_does_anyway_is_not_named() -> None:
    for text in (
        "",
        "expandable_segments:True",
        "per_process_memory_fraction:0.5,backend:native",
        "pinned_use_cuda_host_register:True, pinned_num_register_threads:8",
        "graph_capture_record_stream_reuse:False,throw_on_cudamalloc_oom:True",
    ):
        assert ignored_settings(text) == []


def test_every_other_setting_is_named_with_its_value() -> None:
    text = "max_split_size_mb:20, roundup_power2_divisions:[256:1,512:2,>:4],expandable_segments:False,new_key: 7"
    notes = ignored_settings(text)
    assert [note.partition(" (")[0] for note in notes] == [
        "max_split_size_mb:20",
        "roundup_power2_divisions:[256:1,512:2,>:4]",
        "expandable_segments:False",
        "new_key:7",
    ]
    assert all(note.endswith(")") for note in notes)
    assert "mempool knows no such setting" in notes[-1]


def test_one_warning_names_all() -> None:
    with pytest.warns(UserWarning, match="max_split_size_mb:20 .*; garbage_collection_threshold:0.8 ") as caught:
        warn_of_ignored("max_split_size_mb:20,garbage_collection_threshold:0.8")
    assert len(caught) == 1
    assert str(caught[0].message) == ignored_message(
        ignored_settings("max_split_size_mb:20,garbage_collection_threshold:0.8")
    )
