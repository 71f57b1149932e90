from __future__ import annotations

import struct
from pathlib import Path

from tests.chaos.log_tail import cut_tail


def test_whole_batches_go_and_what_contradicts_the_log(tmp_path: Path) -> None:
    directory = tmp_path / "chaos-2"
    directory.mkdir()
    batches = [struct.pack(">qi", offset, 8) + bytes(8) for offset in (0, 4, 6, 9)]
    log = directory / "00000000000000000000.log"
    log.write_bytes(b"".join(batches))
    stale = [tmp_path / ".kafka_cleanshutdown", log.with_suffix(".index")]
    stale.append(directory / "00000000000000000010.snapshot")
    for file in stale:
        file.touch()

    assert cut_tail(tmp_path, "chaos", 2, first=4, share=0.5) == 6
    assert log.read_bytes() == b"".join(batches[:2])
    assert not any(file.exists() for file in stale)
