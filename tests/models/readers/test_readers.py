from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import DataError, TrainingError
from models.readers import READERS, read


def test_a_data_set_is_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "behaviors.csv"
    path.write_text("who,item_id,time\nu,x,5\n")
    assert read("columns", path, user_id="who", time_unit="s").user_ids == ["u"]


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].origin])
def test_every_published_data_set_tells_where_to_get_it(tmp_path: Path, name: str) -> None:
    origin = READERS[name].origin
    assert origin is not None
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as told:
            read(name, path)
        message = str(told.value)
        assert "\n" not in message
        assert str(path) in message
        assert origin.url in message
        assert origin.licence in message


@pytest.mark.parametrize("name", [name for name in READERS if not READERS[name].origin])
def test_ones_own_data_is_told_to_be_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError, match="nowhere is not there"):
        read(name, tmp_path / "nowhere")


def test_a_misspelt_reader_or_option_is_told_the_nearest() -> None:
    with pytest.raises(DataError, match="no reader 'movielens-1n'; did you mean movielens-1m"):
        read("movielens-1n", Path())
    with pytest.raises(DataError, match="choose one of: movielens-1m, "):
        read("zzz", Path())
    with pytest.raises(DataError, match="no option 'user'; did you mean users"):
        read("columns", Path(), user="who")
