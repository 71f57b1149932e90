from __future__ import annotations

import datetime as dt
import gzip
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from infra.behaviors import DEFAULT_ACTIONS
from infra.errors import SettingsError, SourceError
from infra.settings import EventSettings
from streaming.files.batches import EventBatch
from streaming.files.formats.text import Text
from streaming.files.reader import EventFile, read_events

T0 = 1_600_000_000_000
FORMATS = [
    "events.parquet",
    "events.csv",
    "events.jsonl",
    "events.csv.gz",
    "events.jsonl.gz",
    "events.csv.zst",
    "events.jsonl.zst",
]

Row = dict[str, Any]


def row(number: int, **fields: Any) -> Row:
    return {
        "user_id": f"u{number % 7}",
        "item_id": f"i{number}",
        "action": "click",
        "event_time": T0 + number,
    } | fields


def write(path: Path, rows: Sequence[Row], *, group: int = 1000) -> Path:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
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
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    elif path.suffix == ".zst":
        raw = pa.Codec("zstd").compress(raw, asbytes=True)
    path.write_bytes(raw)
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
    click = DEFAULT_ACTIONS.codes["click"]
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
    path = make([row(0), row(1), row(2, user_id="")])
    with pytest.raises(SourceError, match=r"row 3: user_id is empty; correct the row"):
        list(read_events(path))


def test_skipped_rows_are_counted_and_keep_their_numbers(
    make: Callable[[Sequence[Row]], Path],
) -> None:
    path = make([row(0), row(1, user_id=""), row(2, event_time=5), row(3), row(4, item_id="")])
    file = EventFile(path, on_bad="skip")
    assert [e[0] for e in events(list(file.batches()))] == [0, 3]
    assert file.skipped == {"empty": 2, "too_old": 1}


def test_columns_are_mapped_and_constants_fill_in(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make([{"who": 17, "what": "x", "when": T0 // 1000, "verb": "buy"}])
    mapping = EventSettings(
        fields={"user_id": "who", "item_id": "what", "event_time": "when", "action": "verb"},
        actions={"buy": "purchase"},
        constants={"source": "shop", "category_id": "toys", "dwell_ms": 12},
        time_unit="s",
    )
    (batch,) = read_events(path, mapping)
    assert events([batch]) == [(0, "17", "x", T0, DEFAULT_ACTIONS.codes["purchase"])]
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


@pytest.mark.parametrize(("dwell", "wrong"), [(-1, "negative"), (2**32, "more than 4294967295")])
def test_impossible_dwell_times_are_bad(
    make: Callable[[Sequence[Row]], Path], dwell: int, wrong: str
) -> None:
    path = make([row(0, dwell_ms=dwell)])
    with pytest.raises(SourceError, match=f"row 1: dwell_ms '?{dwell}'? is {wrong}"):
        list(read_events(path))


def test_unknown_actions_are_bad_and_the_nearest_is_named(
    make: Callable[[Sequence[Row]], Path],
) -> None:
    path = make([row(0, action="clik")])
    with pytest.raises(SourceError, match=r"row 1: action 'clik' is not known.*click"):
        list(read_events(path))


def test_overlong_ids_and_nul_are_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", [row(0, user_id="ü" * 129), row(1, user_id="a\0b")])
    file = EventFile(path, on_bad="skip")
    assert events(list(file.batches())) == []
    assert file.skipped == {"too_long": 1, "bad_text": 1}


def test_future_and_ancient_times_are_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", [row(0, event_time=T0 + 86_400_001), row(1, event_time=1)])
    file = EventFile(path, on_bad="skip", now_ms=T0)
    assert events(list(file.batches())) == []
    assert file.skipped == {"in_future": 1, "too_old": 1}


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
        assert file.skipped == {"bad_time": 2}


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


@pytest.mark.parametrize(
    "column",
    [
        pa.array([T0 * 1_000_000 + 999_999], pa.timestamp("ns")),
        pa.array([T0 * 1000 + 999], pa.timestamp("us", "Europe/Berlin")),
        pa.array([T0], pa.timestamp("ms")),
        pa.array([T0 // 1000], pa.timestamp("s", "UTC")),
        pa.array([T0], pa.date64()),
        pa.array([T0 // 86_400_000], pa.date32()),
        pa.array([T0 * 1000 + 999], pa.timestamp("us")).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_typed_times_are_cut_to_the_millisecond(tmp_path: Path, column: Any) -> None:
    table = pa.table({"user_id": ["u"], "item_id": ["i"], "action": ["view"], "event_time": column})
    pq.write_table(table, tmp_path / "e.parquet")
    (batch,) = read_events(tmp_path / "e.parquet", EventSettings(time_unit="iso"))
    whole_day = T0 - T0 % 86_400_000
    assert batch.times.tolist() == [whole_day if "date" in str(column.type) else T0]


def test_a_typed_time_out_of_range_is_told_as_a_moment(tmp_path: Path) -> None:
    path = write(
        tmp_path / "e.parquet", [row(0, event_time=dt.datetime(1999, 1, 2, tzinfo=dt.UTC))]
    )
    with pytest.raises(SourceError, match=r"row 1: event_time 1999-01-02T00:00:00.*before 2000"):
        list(read_events(path))


def test_a_column_of_a_type_that_no_rule_takes_is_bad_by_row(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array([True, None]),
            "item_id": ["a", "b"],
            "action": ["click", "view"],
            "event_time": pa.array([T0, T0], pa.duration("ms")),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    file = EventFile(tmp_path / "e.parquet", EventSettings(constants={"user_id": 5}), on_bad="skip")
    assert events(list(file.batches())) == []
    assert file.skipped == {"wrong_type": 2}


def test_bytes_that_are_no_utf8_are_bad_by_row(tmp_path: Path) -> None:
    raw = pa.array([b"u0", b"\xff", b"u2"])
    for users in (raw, pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])):
        table = pa.table(
            {
                "user_id": users,
                "item_id": ["a", "b", "c"],
                "action": ["view"] * 3,
                "event_time": [T0] * 3,
            }
        )
        pq.write_table(table, tmp_path / "e.parquet")
        file = EventFile(tmp_path / "e.parquet", on_bad="skip")
        assert [e[:2] for e in events(list(file.batches()))] == [(0, "u0"), (2, "u2")]
        assert file.skipped == {"bad_text": 1}


def test_decimals_are_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array([Decimal(12), Decimal(13)], pa.decimal128(20, 2)),
            "item_id": ["a", "b"],
            "action": ["click", "view"],
            "event_time": pa.array([Decimal("1600000000.0019")] * 2, pa.decimal128(20, 4)),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    (batch,) = read_events(tmp_path / "e.parquet", EventSettings(time_unit="s"))
    assert plain(batch.users) == ["12", "13"]
    assert batch.times.tolist() == [T0 + 1, T0 + 1]


def test_a_source_that_is_no_id_is_left_out(make: Callable[[Sequence[Row]], Path]) -> None:
    path = make([row(0, source="web"), row(1, source="x" * 300)])
    (batch,) = read_events(path)
    assert plain(batch.sources) == ["web", None]


def test_floating_point_cells_of_a_csv_file_are_numbers(tmp_path: Path) -> None:
    rows = [row(0, user_id="7.0", item_id="12e5"), row(1, user_id="7.5"), row(2, user_id="-7")]
    file = EventFile(write(tmp_path / "e.csv", rows), on_bad="skip")
    assert [e[:3] for e in events(list(file.batches()))] == [(0, "7", "12e5"), (2, "-7", "i2")]
    assert file.skipped == {"wrong_type": 1}


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
    assert file.skipped == {"wrong_type": 4}


def test_lines_that_are_no_json_objects_are_bad_and_blank_ones_are_not(tmp_path: Path) -> None:
    good = json.dumps(row(0))
    data = "\n".join(["\ufeff" + good, "", "[1]", "{", '{"user_id": "\ud800"}', " ", good])
    path = write_text(tmp_path / "e.jsonl", data.encode("utf-8", "surrogatepass"))
    file = EventFile(path, on_bad="skip")
    assert [e[0] for e in events(list(file.batches()))] == [0, 6]
    assert file.skipped == {"not_json": 2, "wrong_shape": 1}


def test_a_line_that_ends_inside_an_object_leaves_its_neighbors_alone(tmp_path: Path) -> None:
    good = json.dumps(row(0))
    half = good.index(", ") + 1
    path = write_text(tmp_path / "e.jsonl", f"{good[:half]}\n{good[half:]} {good}\n{good}\n")
    file = EventFile(path, on_bad="skip")
    assert [e[0] for e in events(list(file.batches()))] == [2]
    assert file.skipped == {"not_json": 2}


def test_an_endless_line_is_one_bad_row_in_bounded_memory(tmp_path: Path) -> None:
    good = json.dumps(row(0)).encode()
    path = write_text(tmp_path / "e.jsonl", b"\n".join([good, b"x" * 500_000, good]))
    mapping = EventSettings(max_event_bytes=1000)
    file = EventFile(path, mapping, on_bad="skip", text_block=4096)
    assert [e[0] for e in events(list(file.batches()))] == [0, 2]
    assert file.skipped == {"too_large": 1}
    with pytest.raises(SourceError, match="row 2: 500000 bytes exceed max_event_bytes = 1000"):
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
        assert file.skipped == {"wrong_shape": 4, "bad_text": 1}
        rest = EventFile(path, on_bad="skip", text_block=block).batches(start_row=51)
        assert [e[0] for e in events(list(rest))] == [n for n in expected if n > 51]


def test_csv_cells_may_hold_line_ends_and_commas(tmp_path: Path) -> None:
    data = f'user_id,item_id,action,event_time\nu,"a\nb,c",click,{T0}\nv,d,click,{T0}\n'
    (batch,) = read_events(write_text(tmp_path / "e.csv", data))
    assert plain(batch.items) == ["a\nb,c", "d"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("name", ["e.csv", "e.csv.zst", "e.jsonl.gz"])
def test_text_is_read_in_its_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    data = f'{{"user_id": "é", "item_id": "i;", "action": "view", "event_time": {T0}}}\n'
    if ".csv" in name:
        data = f'user_id;item_id;action;event_time\né;"i;";view;{T0}\n'
    path = write_text(tmp_path / name, data.encode(encoding))
    (batch,) = EventFile(path, text=Text(encoding, ";")).batches()
    assert (plain(batch.users), plain(batch.items)) == (["é"], ["i;"])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("user_id,item_id\n".encode("utf-16"), "it is in UTF-16, give --encoding utf-16"),
        ("user_id,item_id\n".encode("utf-16-le"), "an encoding of several bytes a character"),
        ("user_id,item_id\n".encode("utf-32"), "it is in UTF-32"),
        (gzip.compress(b"user_id,item_id\n"), "compressed by gzip, name it .gz"),
        (pa.Codec("zstd").compress(b"user_id\n", asbytes=True), "compressed by Zstandard"),
        (b"PAR1", "it is Parquet, name it .parquet"),
        ("user_id,é\n".encode("latin-1"), "byte 8 of its first line is not UTF-8"),
    ],
)
def test_what_is_no_text_in_utf_8_is_told_what_it_is(
    tmp_path: Path, data: bytes, told: str
) -> None:
    with pytest.raises(SourceError, match=told):
        EventFile(write_text(tmp_path / "e.csv", data))


def test_text_in_another_encoding_than_told_is_one_line(tmp_path: Path) -> None:
    path = write_text(tmp_path / "e.jsonl", b'{"user_id": "\xd8\n"}\n')
    with pytest.raises(SourceError, match="check its --encoding"):
        list(EventFile(path, text=Text("utf-16")).batches())


@pytest.mark.parametrize(("encoding", "delimiter"), [("klingon", ","), ("utf-8", "||")])
def test_what_is_no_encoding_or_delimiter_is_told(encoding: str, delimiter: str) -> None:
    with pytest.raises(SourceError, match=r"no encoding 'klingon'|delimiter '\|\|'"):
        Text(encoding, delimiter)


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


@pytest.mark.parametrize(
    "mapping",
    [
        {"format": "segment"},
        {"split": "items"},
        {"only": {"type": "track"}},
        {"ignore": {"bot": True}},
        {"fields": {"user_id": ["userId", "anonymousId"]}},
    ],
)
def test_a_mapping_of_records_is_none_of_columns(mapping: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text("user_id,item_id,action,event_time\n")
    with pytest.raises(SettingsError, match=f"events.{next(iter(mapping))}"):
        EventFile(file, EventSettings.model_validate(mapping))


def test_lines_of_json_may_have_a_choice_of_paths(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    rows: list[Row] = [{"a": "u1"}, {"b": [{"id": "u2"}]}, {"a": "", "b": [{"id": "u3"}]}]
    same: Row = {"item_id": "i", "action": "view", "event_time": 1_700_000_000_000}
    file.write_text("".join(json.dumps(row | same) + "\n" for row in rows))
    for second in ("b[0].id", "b[].id | [0]"):
        mapping = EventSettings(fields={"user_id": ["a", second]})
        (batch,) = EventFile(file, mapping).batches()
        assert batch.users.to_pylist() == ["u1", "u2", "u3"]
