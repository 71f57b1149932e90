from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.errors import DataError
from models.data.interactions import Interactions
from models.readers import amazon

HEADER_2023 = "user_id,parent_asin,rating,timestamp\n"
REVIEWS = [
    {
        "reviewerID": "A10000012B7CGYKOMPQ4L",
        "asin": "000100039X",
        "reviewerName": "Adam",
        "helpful": [0, 0],
        "reviewText": 'Spiritually and "mentally" inspiring!\nA book.',
        "overall": 5.0,
        "summary": "Wonderful!",
        "unixReviewTime": 1355616000,
        "reviewTime": "12 16, 2012",
    },
    {
        "reviewerID": "A2S166WSCFIFP5",
        "asin": "0002051850",
        "overall": 2.0,
        "unixReviewTime": 1071100800,
    },
]
META_2018 = [
    {"asin": "000100039X", "title": "The Prophet", "category": ["Books", "Poetry"], "price": "$4"},
    {"asin": "0002051850", "title": "For Whom", "category": []},
]
# Python's notation, as it was published in 2014.
META_2014 = (
    "{'asin': '000100039X', 'salesRank': {'Books': 1}, 'title': \"The Prophet's\", 'categories':"
    " [['Books', \"Children's Books\", 'Poetry'], ['Books']], 'price': 4.0}\n"
    "{'asin': '0002051850', 'categories': [['Books']], 'title': 'It\\'s'}\n"
    "{'asin': '0009999999', 'imUrl': 'http://example.com/x.jpg'}\n"
)


def lines(path: Path, objects: Sequence[object]) -> Path:
    text = "".join(json.dumps(each) + "\n" for each in objects).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def category(interactions: Interactions, name: str) -> list[list[str]]:
    table = interactions.item_attributes[name]
    return [[table.values[row] for row in rows if row] for rows in table.rows]


@pytest.mark.parametrize("name", ["reviews_Books_5.json.gz", "Books_5.json.gz", "Books_5.json"])
def test_reviews_are_read_as_published(tmp_path: Path, name: str) -> None:
    lines(tmp_path / name, REVIEWS)
    interactions = amazon.read(tmp_path)
    assert interactions.user_ids == ["A2S166WSCFIFP5", "A10000012B7CGYKOMPQ4L"]
    assert interactions.item_ids == ["", "0002051850", "000100039X"]
    assert interactions.times.tolist() == [1071100800, 1355616000]
    assert interactions.values is not None
    assert interactions.values.tolist() == [2, 5]
    assert interactions.actions is not None
    assert [interactions.action_names[a] for a in interactions.actions] == ["rated 2", "rated 5"]


def test_categories_of_2018(tmp_path: Path) -> None:
    lines(tmp_path / "Books_5.json.gz", REVIEWS)
    lines(tmp_path / "meta_Books.json.gz", META_2018)
    interactions = amazon.read(tmp_path)
    assert interactions.titles == ["", "For Whom", "The Prophet"]
    assert category(interactions, "category") == [[], [], ["Poetry"]]
    assert category(interactions, "categories") == [[], [], ["Books", "Poetry"]]


def test_categories_of_2014(tmp_path: Path) -> None:
    lines(tmp_path / "reviews_Books_5.json.gz", REVIEWS)
    (tmp_path / "meta_Books.json.gz").write_bytes(gzip.compress(META_2014.encode()))
    interactions = amazon.read(tmp_path)
    assert interactions.titles == ["", "It's", "The Prophet's"]
    assert category(interactions, "category") == [[], ["Books"], ["Poetry"]]
    assert category(interactions, "categories") == [
        *([], ["Books"], ["Books", "Children's Books", "Poetry"])
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ratings_Books.csv", "AH2L9G3DQHHAJ,0000000116,4.0,1019865600\nA2I,B000000116,1.0,5\n"),
        ("Books.csv", "0000000116,AH2L9G3DQHHAJ,4.0,1019865600\nB000000116,A2I,1.0,5\n"),
        (
            "Books.csv",
            f"{HEADER_2023}AH2L9G3DQHHAJ,0000000116,4.0,1019865600123\nA2I,B000000116,1.0,5999\n",
        ),
    ],
    ids=["2014", "2018", "2023"],
)
def test_ratings_alone_are_read_as_published(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    interactions = amazon.read(tmp_path)
    assert interactions.user_ids == ["A2I", "AH2L9G3DQHHAJ"]
    assert interactions.item_ids == ["", "B000000116", "0000000116"]
    assert interactions.times.tolist() == [5, 1019865600]


def test_another_group_of_products(tmp_path: Path) -> None:
    (tmp_path / "ratings_Toys.csv").write_text("AH2L9G3DQHHAJ,0000000116,4.0,1019865600\n")
    assert len(amazon.read(tmp_path, product="Toys")) == 1


def test_a_missing_file_is_told_with_where_to_get_it_and_its_licence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Books_5\.json\.gz.*nijianmo.*licence") as told:
        amazon.read(tmp_path)
    assert "\n" not in str(told.value)


def test_objects_that_are_no_reviews_are_told(tmp_path: Path) -> None:
    lines(tmp_path / "Books_5.json", [{"reviewerID": "A1", "asin": "B1", "overall": 1.0}])
    with pytest.raises(DataError, match="lacks the field 'unixReviewTime'"):
        amazon.read(tmp_path)


@pytest.mark.parametrize("text", ["", '{"reviewerID": 5}\n', "not json\n"])
def test_a_malformed_file_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "Books_5.json").write_text(text)
    with pytest.raises(DataError, match=r"Books_5\.json cannot be read as JSON lines") as told:
        amazon.read(tmp_path)
    assert "\n" not in str(told.value)
