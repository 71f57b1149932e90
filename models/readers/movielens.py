"""MovieLens: ratings of films.

1M is published as ``ratings.dat``, ``movies.dat`` and ``users.dat`` (fields between ``::``,
Latin-1), 32M (as 20M and 25M) as ``ratings.csv`` and ``movies.csv``. 1M also circulates as parquet
without times (``ratings_ordered.parquet``): there a user's ratings have positions instead.

Attributes of films: ``genre`` (several) and ``year``. Of users, 1M only: ``gender``, ``age``
(bracket), ``occupation`` (code) and ``zip`` (its first character: the region).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa

from infra.errors import DataError
from models.data.interactions import Column, Columns, Entities, Interactions, pc
from models.readers import tables
from models.readers.ratings import RATED, RATED_WHOLE, rated
from models.readers.tables import Origin

ORIGIN_1M: Final = Origin(
    "MovieLens 1M",
    "https://grouplens.org/datasets/movielens/1m/",
    "research only, not to be passed on; cite Harper and Konstan 2015",
)
ORIGIN_32M: Final = Origin(
    "MovieLens 32M",
    "https://grouplens.org/datasets/movielens/32m/",
    "research only, cite Harper and Konstan 2015; see its README",
)
FILES_1M: Final = ("ratings.dat", "ratings_ordered.parquet")
FILES_32M: Final = ("ratings.csv", "ratings.csv.gz")


def read(path: Path, *, share: float = 1.0) -> Interactions:
    """Read whichever MovieLens lies at ``path``: a directory, or the file of its ratings."""
    if path.suffix in {".dat", ".parquet"} or tables.lying_in(path, FILES_1M):
        return read_1m(path, share=share)
    return read_32m(path, share=share)


def read_1m(path: Path, *, share: float = 1.0) -> Interactions:
    """Read MovieLens 1M. Where files hold no times, time is the position in the user's sequence.

    Ratings of one second are many; their order in the file is kept.

    Args:
        path: the directory, or the file of ratings in it.
        share: the first part of the ratings to keep, by time.

    Raises:
        DataError: a file is missing or malformed.
    """
    ratings = tables.find(path, FILES_1M, ORIGIN_1M)
    return _parquet(ratings, share) if ratings.suffix == ".parquet" else _dat(ratings, share)


def read_32m(path: Path, *, share: float = 1.0) -> Interactions:
    """Read MovieLens 32M, or another of its format; arguments and errors as of `read_1m`."""
    ratings = tables.find(path, FILES_32M, ORIGIN_32M)
    table = tables.read_csv(
        ratings,
        ["userId", "movieId", "rating", "timestamp"],
        types={
            "userId": pa.int32(),
            "movieId": pa.int32(),
            "rating": pa.float32(),
            "timestamp": pa.int64(),
        },
        quoted=False,
    )
    films = tables.lying_in(ratings.parent, ["movies.csv", "movies.csv.gz"])
    items = None
    if films is not None:
        named = tables.read_csv(films, ["movieId", "title", "genres"])
        items = _films(named["movieId"], named["title"], named["genres"])
    times = tables.seconds(table["timestamp"], f"{ratings}: timestamp", "s")
    return Columns(
        users=table["userId"],
        items=table["movieId"],
        times=times,
        actions=rated(table["rating"], f"{ratings}: rating"),
        action_names=RATED,
        values=table["rating"],
    ).interactions(str(ratings), items=items, share=share)


def _dat(ratings: Path, share: float) -> Interactions:
    # "1::1193::5::978300760": numbers only, so that single colons can part them.
    wanted = {"user": pa.int32(), "item": pa.int32(), "rating": pa.int8(), "time": pa.int64()}
    gaps = {"_1": pa.string(), "_2": pa.string(), "_3": pa.string()}
    table = tables.read_csv(
        ratings,
        list(wanted),
        names=["user", "_1", "item", "_2", "rating", "_3", "time"],
        types=wanted | gaps,
        delimiter=":",
        quoted=False,
    )
    films, people = ratings.with_name("movies.dat"), ratings.with_name("users.dat")
    items, users = None, None
    if films.is_file():
        items = _films(*_fields(films, 3))
    if people.is_file():
        ids, gender, age, occupation, code = _fields(people, 5)
        users = _people(ids, gender, age, occupation, code)
    return Columns(
        users=table["user"],
        items=table["item"],
        times=tables.seconds(table["time"], f"{ratings}: timestamp", "s"),
        actions=rated(table["rating"], f"{ratings}: rating"),
        action_names=RATED_WHOLE,
        values=table["rating"],
    ).interactions(str(ratings), items=items, users=users, share=share)


def _parquet(ratings: Path, share: float) -> Interactions:
    table = tables.read_parquet(ratings, ["user_id", "movie_id", "position", "rating"])
    films, people = ratings.with_name("movies.parquet"), ratings.with_name("users.parquet")
    items, users = None, None
    if films.is_file():
        named = tables.read_parquet(films, ["movie_id", "title", "genres"])
        items = _films(named["movie_id"], named["title"], named["genres"])
    if people.is_file():
        columns = ["user_id", "gender", "age", "occupation", "zip"]
        known = tables.read_parquet(people, columns)
        users = _people(*(known[name] for name in columns))
    return Columns(
        users=table["user_id"],
        items=table["movie_id"],
        times=tables.seconds(table["position"], f"{ratings}: position", "s"),
        actions=rated(table["rating"], f"{ratings}: rating"),
        action_names=RATED_WHOLE,
        values=table["rating"],
    ).interactions(str(ratings), items=items, users=users, share=share)


def _fields(path: Path, size: int) -> list[Column]:
    """The columns of a small ``::`` file whose fields may hold single colons."""
    with tables.reading(path, "text"):
        text = path.read_text(encoding="latin-1")
    parts = pc.split_pattern(pa.array(text.splitlines(), pa.string()), "::")
    if not len(parts) or not pc.all(pc.equal(pc.list_value_length(parts), size)).as_py():
        raise DataError(f"{path} must hold lines of {size} fields between ::; get it anew")
    return [pc.list_element(parts, index) for index in range(size)]


def _films(ids: Column, titles: Column, genres: Column) -> Entities:
    genres = pc.split_pattern(genres.cast(pa.string()), "|")
    year = pc.extract_regex(titles.cast(pa.string()), r"\((?P<year>\d{4})[^()]*\)\s*$")
    year = pc.struct_field(year, "year")
    return Entities(ids, titles, {"genre": genres, "year": year})


def _people(ids: Column, gender: Column, age: Column, occupation: Column, code: Column) -> Entities:
    region = pc.utf8_slice_codeunits(code.cast(pa.string()), 0, 1)
    attributes = {"gender": gender, "age": age, "occupation": occupation, "zip": region}
    return Entities(ids, attributes=attributes)
