from __future__ import annotations

import datetime as dt
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from infra.behaviors import ACTIONS
from infra.errors import SourceError
from infra.settings import EventSettings
from streaming.files.reader import EventBatch, EventFile, read_events

T0 = 1_600_000_000_000
FORMATS = ["events.parquet", "events.csv", "events.jsonl", "events.csv.gz", "events.jsonl.gz"]

Row = dict[str, Any]


def row(number: int, **fields: Any) -> Row:
    return {
        "user_id": f"u{number % 7}",
        "item_id": f"i{number}",
        "action": "click",
        "event_time": T0 + number,
    } | fields


def write(path: Path, rows: Sequence[Row], *, group: int = 1000) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=group)
        return path
    if name.endswith(".csv"):
        header = ",".join(rows[0])
        lines = [",".join("" if v is None else str(v) for v in r.values()) for r in rows]
        data = "\n".join([header, *lines]) + "\n"
    else:
        data = "".join(json.dumps(r) + "\n" for r in rows)
    return write_text(path, data)


def write_text(path: Path, data: str | bytes) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def events(batches: Sequence[EventBatch]) -> list[tuple[int, str, str, int, int]]:
    return [
        event
        for b in batches
        for event in zip(
            b.rows.tolist(),
            b.users.to_pylist(),
            b.items.to_pylist(),
            b.times.tolist(),
            b.actions.tolist(),
            strict=True,
        )
    ]


def plain(column: Any) -> list[Any] | None:
    return None if column is None else list(column.tolist())


@pytest.fixture(params=FORMATS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Sequence[Row]], Path]:
    """Writes rows as a file of each format in turn."""
    return lambda rows: write(tmp_path / request.param, rows, group=100)


def test_events_come_out_as_they_went_in(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make([row(n) for n in range(250)])
    read = events(list(read_events(path, batch_rows=64)))
    click = ACTIONS["click"]
    assert read == [(n, f"u{n % 7}", f"i{n}", T0 + n, click) for n in range(250)]


def test_reading_resumes_at_any_row(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make([row(n) for n in range(250)])
    whole = events(list(read_events(path)))
    for start in (1, 99, 100, 173, 249, 250):
        assert events(list(read_events(path, start_row=start, batch_rows=40))) == whole[start:]


def test_a_batch_tells_where_to_go_on(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make([row(n) for n in range(250)])
    file = EventFile(path, batch_rows=64, text_block=2000)
    first, *_ = file.batches()
    rest = events(list(read_events(path, start_row=first.next_row)))
    assert events([first]) + rest == events(list(read_events(path)))


def test_batches_are_bounded_and_progress_reaches_the_end(
    make: Callable[[Sequence[Row]], Path],
) -> None:
    path = make([row(n) for n in range(250)])
    batches = list(EventFile(path, batch_rows=64, text_block=1500).batches())
    assert max(len(b) for b in batches) <= 64
    fractions = [b.fraction for b in batches]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_bad_rows_stop_reading_and_are_named(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make([row(0), row(1), row(2, user_id=None)])
    with pytest.raises(SourceError, match=r"row 3: user_id is missing; correct the row"):
        list(read_events(path))


def test_skipped_rows_are_counted_and_keep_their_numbers(
    make: Callable[[Sequence[Row]], Path],
) -> None:
    path = make([row(0), row(1, user_id=None), row(2, event_time=5), row(3), row(4, item_id="")])
    file = EventFile(path, on_bad="skip")
    assert [e[0] for e in events(list(file.batches()))] == [0, 3]
    assert file.skipped == {
        "user_id missing": 1,
        "event_time out of range": 1,
        "item_id missing": 1,
    }


def test_columns_are_mapped_and_constants_fill_in(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make([{"who": 17, "what": "x", "when": T0 // 1000, "verb": "buy"}])
    mapping = EventSettings(
        fields={"user_id": "who", "item_id": "what", "event_time": "when", "action": "verb"},
        actions={"buy": "purchase"},
        constants={"source": "shop", "category_id": "toys", "dwell_ms": 12},
        time_unit="s",
    )
    (batch,) = read_events(path, mapping)
    assert events([batch]) == [(0, "17", "x", T0, ACTIONS["purchase"])]
    assert plain(batch.categories) == ["toys"]
    assert plain(batch.sources) == ["shop"]
    assert plain(batch.dwells) == [12]


def test_optional_fields_may_be_there_or_not(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make(
        [
            row(0, category_id="c", dwell_ms=5, event_id="e"),
            row(1, category_id=None, dwell_ms=None, event_id=None),
        ]
    )
    (batch,) = read_events(path)
    assert plain(batch.categories) == ["c", None]
    assert plain(batch.event_ids) == ["e", None]
    assert plain(batch.dwells) == [5, 0]
    assert batch.sources is None


@pytest.mark.parametrize("dwell", [-1, 2**32])
def test_impossible_dwell_times_are_bad(make: Callable[[Sequence[Row]], Path], dwell: int) -> None:
    path = make([row(0, dwell_ms=dwell)])
    with pytest.raises(SourceError, match=f"row 1: dwell_ms is '{dwell}', not a number of ms"):
        list(read_events(path))


def test_unknown_actions_are_bad_and_the_nearest_is_named(
    make: Callable[[Sequence[Row]], Path],
) -> None:
    path = make([row(0, action="clik")])
    with pytest.raises(SourceError, match=r"row 1: the action 'clik' is not known.*click"):
        list(read_events(path))


def test_overlong_ids_and_nul_are_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", [row(0, user_id="ü" * 129), row(1, user_id="a\0b")])
    file = EventFile(path, on_bad="skip")
    assert events(list(file.batches())) == []
    assert file.skipped == {"user_id too long": 1, "user_id unreadable": 1}


def test_future_and_ancient_times_are_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", [row(0, event_time=T0 + 86_400_001), row(1, event_time=1)])
    file = EventFile(path, on_bad="skip", now_ms=T0)
    assert events(list(file.batches())) == []
    assert file.skipped == {"event_time out of range": 2}


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2020-09-13T12:26:40Z", T0),
        ("2020-09-13T12:26:40", T0),
        ("2020-09-13 12:26:40.5", T0 + 500),
        ("2020-09-13T14:26:40+02:00", T0),
    ],
)
def test_iso_times(tmp_path: Path, text: str, ms: int) -> None:
    for name in ("e.csv", "e.jsonl"):
        path = write(tmp_path / name, [row(0, event_time=text), row(1, event_time="2021-01-01")])
        (batch,) = read_events(path, EventSettings(time_unit="iso"))
        assert batch.times.tolist() == [ms, 1_609_459_200_000]


def test_unreadable_times_are_bad_by_row(tmp_path: Path) -> None:
    for name, unit in [("e.csv", "ms"), ("e.csv", "iso"), ("e.jsonl", "s")]:
        path = write(tmp_path / name, [row(0, event_time="never"), row(1, event_time="x" * 99)])
        file = EventFile(path, EventSettings(time_unit=unit), on_bad="skip")
        assert events(list(file.batches())) == []
        assert file.skipped == {"event_time unreadable": 2}


def test_parquet_timestamps_need_no_unit(tmp_path: Path) -> None:
    moment = dt.datetime(2020, 9, 13, 12, 26, 40, tzinfo=dt.UTC)
    for kind in (pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("s")):
        table = pa.table(
            {
                "user_id": pa.array([12.0, 13.0]),
                "item_id": pa.array(["a", "b"]).dictionary_encode(),
                "action": ["click", "view"],
                "event_time": pa.array([moment, moment], kind),
            }
        )
        pq.write_table(table, tmp_path / "e.parquet")
        (batch,) = read_events(tmp_path / "e.parquet")
        assert batch.times.tolist() == [T0, T0]
        assert plain(batch.users) == ["12", "13"]


def test_nested_fields_are_reached_by_a_dotted_path(tmp_path: Path) -> None:
    rows = [row(n) | {"u": {"id": f"u{n}"}} for n in (1, 2)]
    mapping = EventSettings(fields={"user_id": "u.id"})
    for name in ("e.jsonl", "e.parquet"):
        (batch,) = read_events(write(tmp_path / name, rows), mapping)
        assert plain(batch.users) == ["u1", "u2"]


def test_json_values_of_wrong_types_are_bad_by_row(tmp_path: Path) -> None:
    rows = [
        row(0, user_id=5),
        row(1, user_id=["u"]),
        row(2, item_id={"id": 1}),
        row(3, event_time=True),
        row(4, event_time=str(T0)),
        row(5, user_id=1.5),
        row(6, event_time=float(T0)),
    ]
    file = EventFile(write(tmp_path / "e.jsonl", rows), on_bad="skip")
    assert [(e[0], e[1], e[3]) for e in events(list(file.batches()))] == [
        (0, "5", T0),
        (4, "u4", T0),
        (6, "u6", T0),
    ]
    assert file.skipped == {
        "user_id unreadable": 2,
        "item_id unreadable": 1,
        "event_time unreadable": 1,
    }


def test_lines_that_are_no_json_objects_are_bad_and_blank_ones_are_not(tmp_path: Path) -> None:
    good = json.dumps(row(0))
    data = "\n".join(["\ufeff" + good, "", "[1]", "{", '{"a": "\ud800"}', " ", good])
    path = write_text(tmp_path / "e.jsonl", data.encode("utf-8", "surrogatepass"))
    file = EventFile(path, on_bad="skip")
    assert [e[0] for e in events(list(file.batches()))] == [0, 6]
    assert file.skipped == {"unreadable": 2, "user_id missing": 1}


def test_an_endless_line_is_one_bad_row_in_bounded_memory(tmp_path: Path) -> None:
    good = json.dumps(row(0)).encode()
    path = write_text(tmp_path / "e.jsonl", b"\n".join([good, b"x" * 500_000, good]))
    mapping = EventSettings(max_event_bytes=1000)
    file = EventFile(path, mapping, on_bad="skip", text_block=4096)
    assert [e[0] for e in events(list(file.batches()))] == [0, 2]
    assert file.skipped == {"unreadable": 1}
    with pytest.raises(SourceError, match="row 2: is longer than 1000 bytes"):
        list(read_events(path, mapping))


def test_csv_rows_of_wrong_width_or_encoding_are_bad_by_row(tmp_path: Path) -> None:
    lines = [f"u{n},i{n},click,{T0}".encode() for n in range(200)]
    for n in (0, 50, 51, 199):
        lines[n] = b"too,few"
    lines[100] = b"\xff,i,click," + str(T0).encode()
    data = b"user_id,item_id,action,event_time\n" + b"\n".join(lines)
    path = write_text(tmp_path / "e.csv", data)
    expected = [n for n in range(200) if n not in (0, 50, 51, 100, 199)]
    for block in (256, 1 << 20):
        file = EventFile(path, on_bad="skip", text_block=block)
        assert [e[0] for e in events(list(file.batches()))] == expected
        assert file.skipped == {"unreadable": 4, "user_id unreadable": 1}
        rest = EventFile(path, on_bad="skip", text_block=block).batches(start_row=51)
        assert [e[0] for e in events(list(rest))] == [n for n in expected if n > 51]


def test_csv_cells_may_hold_line_ends_and_commas(tmp_path: Path) -> None:
    data = f'user_id,item_id,action,event_time\nu,"a\nb,c",click,{T0}\nv,d,click,{T0}\n'
    (batch,) = read_events(write_text(tmp_path / "e.csv", data))
    assert plain(batch.items) == ["a\nb,c", "d"]


@pytest.mark.parametrize("name", ["events.parquet", "events.csv"])
def test_a_missing_column_is_named_with_its_nearest(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"userid": "u", "item_id": "i", "action": "view"}])
    with pytest.raises(
        SourceError, match=r"no column 'user_id' for user_id; map .* mean userid\?$"
    ):
        EventFile(path)


def test_files_that_cannot_be_read_say_so_in_one_line(tmp_path: Path) -> None:
    broken = {
        "missing.csv": None,
        "empty.csv": b"",
        "cut.parquet": b"PAR1 and no more",
        "events.xlsx": b"x",
        "cut.jsonl.gz": gzip.compress(json.dumps(row(0)).encode() * 1000)[:60],
        "plain.csv.gz": b"user_id,item_id\n",
    }
    for name, data in broken.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError) as caught:
            list(read_events(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_identity_follows_the_content_and_not_the_path(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", [row(0), row(1)])
    b = write(tmp_path / "b.csv", [row(0), row(1)])
    c = write(tmp_path / "c.csv", [row(0), row(2)])
    assert EventFile(a).identity == EventFile(b).identity != EventFile(c).identity


def test_a_parquet_file_knows_its_length(tmp_path: Path) -> None:
    path = write(tmp_path / "e.parquet", [row(n) for n in range(10)])
    assert EventFile(path).rows == 10


def test_a_batch_has_plain_columns(tmp_path: Path) -> None:
    (batch,) = read_events(write(tmp_path / "e.csv", [row(0)]))
    assert (batch.rows.dtype, batch.times.dtype, batch.actions.dtype) == (
        np.dtype("i8"),
        np.dtype("i8"),
        np.dtype("u1"),
    )
