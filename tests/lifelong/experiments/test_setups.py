from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SettingsError, TrainingError
from lifelong.experiments.setups import KNOWN, RATES, Setup, find_setup
from lifelong.experiments.tables import METHODS
from models.data.protocols import NextItem, Rated
from models.readers import READERS


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_data_set_is_recognized_by_its_files(name: str, tmp_path: Path) -> None:
    reader = READERS[KNOWN[name].reader]
    (tmp_path / reader.files[0]).write_text("")
    protocol = str(KNOWN[name].protocol["kind"]).replace("_", "-")
    setup = find_setup(str(tmp_path), protocol, "small")
    assert setup.name == name
    assert setup.tree["data"]["path"] == str(tmp_path)


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", KNOWN)
def test_every_method_has_a_configuration_on_every_setup(
    name: str, scale: str, tmp_path: Path
) -> None:
    (tmp_path / READERS[KNOWN[name].reader].files[0]).write_text("")
    setup = find_setup(str(tmp_path), None, scale)  # type: ignore[arg-type]
    for method in METHODS.values():
        assert setup.config(setup.method_tree(method)).network.d == 32


def test_all_methods_see_the_same_but_for_their_own_section(tmp_path: Path) -> None:
    setup = find_setup("shipped", None, "small")
    trees = [setup.method_tree(method) for method in METHODS.values()]
    for tree in trees:
        assert tree["long_term"].pop("L") == 200
        tree.pop("long_term")
    assert all(tree == trees[0] for tree in trees)


def test_the_shipped_purchases_need_no_directory() -> None:
    assert find_setup("shipped", None, "small").name == "online-retail-2"


def test_one_s_own_data_come_as_a_file(tiny: Setup) -> None:
    config = tiny.config(tiny.method_tree(METHODS["TWIN"]))
    assert (tiny.name, config.samples.users, config.long_term.L) == ("tiny", 40, 30)


def test_one_s_own_data_do_not_take_the_name_of_published_ones(tiny_file: Path) -> None:
    tiny_file.write_text(tiny_file.read_text().replace('"tiny"', '"online-retail-2"'))
    assert find_setup(str(tiny_file), None, "small").name == "online-retail-2-own"


def test_a_file_s_own_learning_rate_is_the_one_that_is_tried(tiny_file: Path) -> None:
    assert find_setup(str(tiny_file), None, "small").rates == RATES["small"]
    tiny_file.write_text(tiny_file.read_text() + "learning_rate = 2e-3\n")
    assert find_setup(str(tiny_file), None, "small").rates == (2e-3,)


def test_a_file_s_own_seed_is_the_first(tiny_file: Path) -> None:
    tiny_file.write_text("seed = 7\n" + tiny_file.read_text())
    assert find_setup(str(tiny_file), None, "small").seed == 7


def test_the_protocol_may_be_another_than_the_file_s(tiny_file: Path) -> None:
    setup = find_setup(str(tiny_file), "rated", "small")
    config = setup.config(setup.method_tree(METHODS["DIN"]))
    assert (config.protocol, setup.name) == (Rated(), "tiny-rated")


def test_a_file_keeps_the_settings_of_the_protocol_that_it_has(tiny_file: Path) -> None:
    setup = find_setup(str(tiny_file), "next-item", "small")
    config = setup.config(setup.method_tree(METHODS["DIN"]))
    assert (config.protocol, setup.name) == (NextItem(negatives=2, evaluation_negatives=20), "tiny")


def test_a_protocol_that_there_is_not_is_told_of_a_file(tiny_file: Path) -> None:
    with pytest.raises(TrainingError, match=r"--protocol ratd: protocol\.kind = 'ratd' is unknown"):
        find_setup(str(tiny_file), "ratd", "small")


def test_methods_have_a_length_where_a_file_s_own_method_sees_nothing(tiny_file: Path) -> None:
    tiny_file.write_text(tiny_file.read_text().replace("L = 30", ""))
    setup = find_setup(str(tiny_file), None, "small")
    length = setup.config(setup.method_tree(METHODS["TWIN"])).long_term.L
    assert length == 200


def test_a_directory_of_nothing_known_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no files of a data set that is known") as raised:
        find_setup(str(tmp_path), None, "small")
    assert "\n" not in str(raised.value)


def test_a_protocol_that_the_data_lack_is_told_with_those_they_have() -> None:
    with pytest.raises(SettingsError, match="take next-item"):
        find_setup("shipped", "rated", "small")


@pytest.mark.parametrize(
    ("text", "message"), [("a = [", "is not TOML"), ("[trainin]", "did you mean training")]
)
def test_a_file_that_is_wrong_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(Exception, match=message):
        find_setup(str(path), None, "small")
