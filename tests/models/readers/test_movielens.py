from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import DataError
from models.data.interactions import Interactions
from models.readers import movielens

# Two ratings of one second: the file's order is the order of events.
RATINGS = "2::10::5::978300760\n1::20::3::978300700\n1::10::4::978300760\n1::30::1::978300760\n"
MOVIES = "10::2001: A Space Odyssey (1968)::Drama|Sci-Fi\n20::Caf\xe9::Comedy\n99::X (1999)::War\n"
USERS = "1::F::1::10::48067\n2::M::56::16::70072-1234\n"


@pytest.fixture
def dat(tmp_path: Path) -> Path:
    for name, text in (("ratings", RATINGS), ("movies", MOVIES), ("users", USERS)):
        (tmp_path / f"{name}.dat").write_text(text, encoding="latin-1")
    return tmp_path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,20,0.5,944249077\n1,10,4.5,944249008\n"
    )
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n"
        '10,"American President, The (1995)",Comedy|Romance\n20,"A ""B""",(no genres listed)\n'
    )
    return tmp_path


def attribute(interactions: Interactions, name: str) -> list[list[str]]:
    table = {**interactions.item_attributes, **interactions.user_attributes}[name]
    return [[table.values[row] for row in rows if row] for rows in table.rows]


def test_1m_is_read_as_published(dat: Path) -> None:
    interactions = movielens.read_1m(dat)
    assert interactions.times.tolist() == [978300700, 978300760, 978300760, 978300760]
    assert interactions.user_ids == ["1", "2"]
    assert interactions.users.tolist() == [0, 1, 0, 0]
    assert interactions.item_ids == ["", "20", "10", "30"]
    assert interactions.items.tolist() == [1, 2, 2, 3]
    assert interactions.titles == ["", "Caf\xe9", "2001: A Space Odyssey (1968)", ""]
    assert interactions.values is not None
    assert interactions.values.tolist() == [3, 5, 4, 1]


def test_a_rating_is_an_action(dat: Path) -> None:
    interactions = movielens.read_1m(dat)
    names = interactions.action_names
    assert names == ["", "rated 1", "rated 2", "rated 3", "rated 4", "rated 5"]
    assert interactions.actions is not None
    assert [names[action] for action in interactions.actions] == [
        *("rated 3", "rated 5", "rated 4", "rated 1")
    ]


def test_1m_tells_of_films_and_people(dat: Path) -> None:
    interactions = movielens.read_1m(dat / "ratings.dat")
    assert attribute(interactions, "genre") == [[], ["Comedy"], ["Drama", "Sci-Fi"], []]
    assert attribute(interactions, "year") == [[], [], ["1968"], []]
    assert attribute(interactions, "gender") == [["F"], ["M"]]
    assert attribute(interactions, "age") == [["1"], ["56"]]
    assert attribute(interactions, "occupation") == [["10"], ["16"]]
    assert attribute(interactions, "zip") == [["4"], ["7"]]


def test_1m_as_parquet_goes_by_position(tmp_path: Path) -> None:
    pq.write_table(
        pa.table(
            {
                "user_id": [1, 1, 2],
                "movie_id": [10, 20, 10],
                "position": [0, 1, 0],
                "rating": [4, 5, 1],
            }
        ),
        tmp_path / "ratings_ordered.parquet",
    )
    movies = {"movie_id": [10], "title": ["A (2000)"], "genres": ["Drama|War"]}
    pq.write_table(pa.table(movies), tmp_path / "movies.parquet")
    interactions = movielens.read(tmp_path)
    assert interactions.times.tolist() == [0, 0, 1]
    assert interactions.users.tolist() == [0, 1, 0]
    assert attribute(interactions, "genre") == [[], ["Drama", "War"], []]


def test_32m_is_read_as_published(csv: Path) -> None:
    interactions = movielens.read(csv)
    assert interactions.item_ids == ["", "10", "20"]
    assert interactions.titles == ["", "American President, The (1995)", 'A "B"']
    assert interactions.values is not None
    assert interactions.values.tolist() == [4.5, 0.5]
    assert interactions.actions is not None
    assert [interactions.action_names[a] for a in interactions.actions] == [
        "rated 4.5",
        "rated 0.5",
    ]
    assert attribute(interactions, "year") == [[], ["1995"], []]


def test_ratings_suffice(dat: Path) -> None:
    (dat / "movies.dat").unlink()
    (dat / "users.dat").unlink()
    interactions = movielens.read(dat)
    assert not interactions.item_attributes
    assert not interactions.user_attributes


def test_a_missing_file_is_told_with_where_to_get_it_and_its_licence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ratings\.dat.*grouplens\.org.*licence: research") as told:
        movielens.read_1m(tmp_path)
    assert "\n" not in str(told.value)
    with pytest.raises(DataError, match=r"ratings\.csv.*grouplens\.org.*licence: "):
        movielens.read_32m(tmp_path)
    with pytest.raises(DataError, match="nowhere is not there; get MovieLens"):
        movielens.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1::10::5\n", "cannot be read as CSV"),
        ("1::10::5::noon\n", "cannot be read as CSV.*noon"),
        ("1::10::7::978300760\n", "rating is 7 in row 1; ratings go from 0.5 to 5"),
        ("", "cannot be read as CSV: Empty CSV file"),
    ],
)
def test_a_malformed_file_is_told_in_one_line(dat: Path, text: str, words: str) -> None:
    (dat / "ratings.dat").write_text(text)
    with pytest.raises(DataError, match=words) as told:
        movielens.read_1m(dat)
    assert "\n" not in str(told.value)
    assert "ratings.dat" in str(told.value)


def test_a_column_that_is_not_there_is_told(csv: Path) -> None:
    (csv / "ratings.csv").write_text("userId,movieId,ratings,timestamp\n1,2,3,4\n")
    with pytest.raises(DataError, match="lacks the column 'rating'; did you mean ratings"):
        movielens.read_32m(csv)


def test_films_of_another_format_are_told(dat: Path) -> None:
    (dat / "movies.dat").write_text("1,A film\n")
    with pytest.raises(DataError, match=r"movies\.dat must hold lines of 3 fields"):
        movielens.read_1m(dat)
