from __future__ import annotations

from pathlib import Path

from lifelong.bench.backfill import Users, measure


def test_a_job_and_reading_alone_are_measured(tmp_path: Path) -> None:
    read, merged, written = measure(tmp_path / "some", 2000, Users("some", "some", 100))
    assert read.events_per_cpu_second > merged.events_per_cpu_second > 0
    assert written > 12  # a segment keeps that much of a behavior
