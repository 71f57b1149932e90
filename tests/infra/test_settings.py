import pickle
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import SettingsError
from infra.settings import (
    SECTIONS,
    Section,
    Settings,
    SourceSettings,
    StoreSettings,
    load_settings,
)


def error(
    overrides: Mapping[str, object] | None = None,
    config: Path | None = None,
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    **variables: str,
) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides, config, flags=flags, environ=environ or variables)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(directory: Path, text: str) -> Path:
    path = directory / "some.toml"
    path.write_text(text)
    return path


def test_defaults_hold_when_nothing_is_said() -> None:
    assert load_settings(environ={}) == Settings()


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "[broker]\ntopic = 'file'\ngroup = 'file'\npartitions = 3\n")
    settings = load_settings(
        {"broker.topic": "flag"},
        config,
        environ={"LIFELONG_BROKER__TOPIC": "env", "LIFELONG_BROKER__GROUP": "env"},
    ).broker
    assert (settings.topic, settings.group, settings.partitions) == ("flag", "env", 3)


def test_a_flag_that_was_not_given_sets_nothing() -> None:
    assert load_settings({"store.url": None, "log": {"level": None}}, environ={}) == Settings()


def test_overrides_may_be_nested() -> None:
    assert load_settings({"worker": {"fetch_max": 5}}, environ={}).worker.fetch_max == 5


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "[scorer]\nport = 81\n")
    assert load_settings(environ={"LIFELONG_CONFIG": str(config)}).scorer.port == 81


def test_an_empty_variable_counts_as_not_set() -> None:
    environ = {"LIFELONG_SCORER__PORT": "", "LIFELONG_CONFIG": ""}
    assert load_settings(environ=environ) == Settings()


def test_service_links_of_a_cluster_are_not_settings() -> None:
    environ = {
        "LIFELONG_SCORER_PORT": "tcp://10.0.0.1:8080",
        "LIFELONG_SCORER_SERVICE_HOST": "10.0.0.1",
        "LIFELONG_SCORER_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings(environ=environ) == Settings()


def test_a_mapping_may_be_given_by_key_or_as_json() -> None:
    by_key = load_settings(environ={"LIFELONG_EVENTS__FIELDS__USER_ID": "uid"})
    as_json = load_settings(environ={"LIFELONG_EVENTS__FIELDS": '{"user_id": "uid"}'})
    assert by_key.events.fields["user_id"] == as_json.events.fields["user_id"] == "uid"


def test_a_list_may_be_given_as_json_or_in_the_file(tmp_path: Path) -> None:
    written = '["answered right", "answered wrong"]'
    config = write(tmp_path, f"[events]\naction_names = {written}\n")
    for settings in (
        load_settings(config=config, environ={}),
        load_settings({"events.action_names": written}, environ={}),
        load_settings(environ={"LIFELONG_EVENTS__ACTION_NAMES": written}),
    ):
        assert settings.events.declared_actions.codes == {"answered right": 1, "answered wrong": 2}


def test_a_list_in_the_environment_that_is_none_is_named() -> None:
    message = error(LIFELONG_EVENTS__ACTION_NAMES="view,click")
    assert message.startswith("LIFELONG_EVENTS__ACTION_NAMES = 'view,click': must be a list")


def test_events_may_spell_the_declared_actions_in_their_own_way() -> None:
    events = {"action_names": ["seen", "bought"], "actions": {"buy": "bought"}}
    assert load_settings({"events": events}, environ={}).events.actions == {"buy": "bought"}


def test_a_mapping_onto_an_action_that_is_declared_no_more_is_an_error() -> None:
    message = error({"events": {"action_names": ["seen"], "actions": {"see": "view"}}})
    assert message.startswith("events.actions = {'see': 'view'}: 'view' is not declared in")


def test_a_wrong_list_of_actions_is_told_before_what_refers_to_it() -> None:
    message = error({"events": {"action_names": [""], "actions": {"see": "view"}}})
    assert message == "events.action_names = ['']: name 1 is empty"


def test_a_long_value_is_shown_in_part() -> None:
    message = error({"events.action_names": [f"action {code}" for code in range(300)]})
    assert len(message) < 250


def test_earliest_is_a_date_or_a_moment() -> None:
    moment = datetime(2010, 1, 1, tzinfo=UTC)
    for written in ("2010-01-01", "2010-01-01T00:00:00Z", "2010-01-01T02:00:00+02:00"):
        settings = load_settings({"events.earliest": written}, environ={})
        assert settings.events.earliest_ms == moment.timestamp() * 1000


def test_a_bad_variable_is_named_with_its_value() -> None:
    message = error(LIFELONG_BROKER__PARTITIONS="eight")
    assert message == "LIFELONG_BROKER__PARTITIONS = 'eight': must be a whole number"


def test_a_bad_flag_is_named_as_it_was_typed() -> None:
    message = error({"store.url": "mongodb://h"}, flags={"store.url": "--store"})
    assert message.startswith("--store = 'mongodb://h': must begin with memory://")


def test_a_bad_key_of_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "[scorer]\nport = 70000\n")
    assert error(config=config) == f"{config}: scorer.port = 70000: must be at most 65535"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LIFELONG_BROKER__PARTITION", "LIFELONG_BROKER__PARTITIONS"),
        ("LIFELONG_SCORER_PORT", "LIFELONG_SCORER__PORT"),
        ("LIFELONG_WORKER__TOPIC", "LIFELONG_BROKER__TOPIC"),
    ],
)
def test_an_unknown_variable_meets_the_nearest_one(name: str, meant: str) -> None:
    assert error(environ={name: "1"}) == f"{name} is not a setting; did you mean {meant}?"


def test_an_unknown_key_of_a_file_meets_the_nearest_one(tmp_path: Path) -> None:
    config = write(tmp_path, "[brokr]\ntopic = 'x'\n")
    assert error(config=config) == f"{config}: brokr is not a setting; did you mean broker?"


def test_an_unknown_flag_meets_the_nearest_key() -> None:
    assert error({"worker.fetchmax": 1}).endswith("did you mean worker.fetch_max?")


def test_a_section_is_not_a_setting() -> None:
    said = error({"bundle": "x"})
    assert said.startswith("bundle is a section, not a setting: it holds path, version")


def test_several_mistakes_are_counted() -> None:
    assert error({"worker": {"fetch_max": 0, "stall_s": 0}}).endswith("(and 1 more)")


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone.toml"
    assert error(config=gone) == f"--config: there is no file {gone}"
    assert error(LIFELONG_CONFIG=str(gone)) == f"LIFELONG_CONFIG: there is no file {gone}"


def test_a_file_that_is_not_toml_says_where(tmp_path: Path) -> None:
    message = error(config=write(tmp_path, "[broker]\ntopic = x\n"))
    assert "is not TOML" in message
    assert "line 2" in message


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    assert error(config=tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_broken_json_in_a_variable_is_named() -> None:
    assert error(LIFELONG_EVENTS__FIELDS="{x").startswith("LIFELONG_EVENTS__FIELDS = '{x'")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("broker.bootstrap", "localhost", "HOST:PORT"),
        ("broker.topic", "a b", "must match"),
        ("log.level", "loud", "must be 'DEBUG'"),
        ("worker.stall_s", "inf", "finite"),
        ("worker.stall_s", "soon", "must be a number"),
        ("events.earliest", "yesterday", "a date like 2000-01-01"),
        ("events.earliest", 3, "a date like 2000-01-01"),
        ("events.fields", {"user": "x"}, "'user' is not one of our fields"),
        ("events.fields", {"user_id": "a..b"}, "dotted path"),
        ("events.constants", {"action": "buy"}, "'buy' is not declared in action_names; choose"),
        ("events.actions", {"buy": "bought"}, "'bought' is not declared in action_names; choose"),
        ("events.actions", {"buy": "purchse"}, "action_names; did you mean purchase?"),
        ("events.action_names", [], "names 0 actions; name 1 to 255"),
        ("events.action_names", [str(code) for code in range(256)], "names 256 actions"),
        ("events.action_names", ["view", " "], "name 2 is empty"),
        ("events.action_names", ["view", "view"], "'view' stands twice"),
        ("events.action_names", ["vi\tew"], "holds a control character"),
        ("events.action_names", ["view" * 20], "name 1 has more than 64 bytes"),
        ("events.action_names", "view, buy", 'a list of names, as in ["view", "purchase"]'),
        ("events.action_names", ["view", 2], "must be a list of names"),
        ("events.action_names", 3, "must be a list of names"),
    ],
)
def test_a_bad_value_says_what_is_allowed(key: str, value: object, reason: str) -> None:
    message = error({key: value})
    assert message.startswith(key)
    assert reason in message


def test_logging_in_needs_all_of_it() -> None:
    message = error(LIFELONG_BROKER__SECURITY_PROTOCOL="sasl_ssl")
    assert "SASL_SSL needs sasl_mechanism, sasl_username, sasl_password too" in message


SECRET = "hunter2"
URL = f"aerospike://reader:{SECRET}@db:3000/users"


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    settings = load_settings(
        {"store.url": URL, "broker.sasl_password": SECRET, "broker.sasl_username": "reader"},
        environ={},
    )
    shown = [repr(settings), str(settings.store), repr(settings.store), settings.model_dump_json()]
    shown += [str(settings.model_dump()), settings.store.masked_url]
    assert not any(SECRET in text for text in shown)


def test_secrets_are_there_for_those_who_need_them() -> None:
    settings = load_settings({"store.url": URL, "broker.sasl_password": SECRET}, environ={})
    copy = pickle.loads(pickle.dumps(settings))  # noqa: S301  # our own bytes
    assert copy.store.url == URL
    assert copy.broker.sasl_password.get_secret_value() == SECRET


@pytest.mark.parametrize(
    "overrides",
    [
        {"store.url": f"mongodb://u:{SECRET}@h"},
        {"broker.sasl_password": [SECRET]},
        {"broker.sasl_pasword": SECRET},
        {"scorer.jwt_keys": f"https://u:{SECRET}@h/jwks"},
        {"scorer.jwt_keys": f"https://{SECRET}@h/jwks"},
        {"store.url": f"memory://u:{SECRET}@h", "worker.fetch_max": 0},
        {"registry.url": f"http://u:{SECRET}@h"},
        {"registry.password": SECRET},
        {"registry.token": SECRET, "registry.token_file": "token"},
    ],
)
def test_secrets_are_masked_in_errors(overrides: dict[str, object]) -> None:
    assert SECRET not in error(overrides)


def test_an_odd_password_is_masked_as_a_whole() -> None:
    assert StoreSettings(url="aerospike://u:a/b@c:d@h:1/n").masked_url == (
        "aerospike://u:**********@h:1/n"
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().broker.topic = "other"  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    for section, about in Settings.model_fields.items():
        assert about.description, section
    models: dict[str, type[Section]] = {**SECTIONS, "sources": SourceSettings}
    for name, model in models.items():
        for key, field in model.model_fields.items():
            assert field.description, f"{name}.{key}"


SHOP = {"name": "shop", "topic": "shop.events", "format": "segment"}
APP = {"name": "app", "topic": "app.events", "dead_letter_topic": "app.dead", "max_id_bytes": 9}


def sources(*entries: Mapping[str, object], **more: object) -> Settings:
    return load_settings({"sources": list(entries), **more}, environ={})


def test_without_sources_there_is_one_without_a_name() -> None:
    settings = Settings()
    assert settings.reading() == settings
    assert settings.events.said == "default"


def test_the_only_source_needs_no_name() -> None:
    settings = sources(SHOP).reading()
    assert (settings.broker.topic, settings.events.format) == ("shop.events", "segment")
    assert (settings.broker.dead_letter_topic, settings.broker.group) == (
        "behaviors.dead",
        "lifelong",
    )


@pytest.mark.parametrize("where", ["flag", "setting"])
def test_of_several_sources_one_is_read_by_its_name(where: str) -> None:
    named = {"worker": {"source": "app"}} if where == "setting" else {}
    settings = sources(SHOP, APP, **named).reading("app" if where == "flag" else None)
    assert settings.broker.dead_letter_topic == "app.dead"
    assert settings.events.said == "app"


@pytest.mark.parametrize("where", ["flag", "setting"])
def test_a_worker_reads_all_sources_unless_it_is_narrowed(where: str) -> None:
    more = {"name": "more", "topic": "more.events"}
    assert [one.events.said for one in sources(SHOP, APP).narrowed().readers()] == ["shop", "app"]

    named = {"worker": {"source": "app, shop"}} if where == "setting" else {}
    settings = sources(SHOP, APP, more, **named).narrowed(["app", "shop"] if not named else [])

    assert settings.narrowed(["app"]).reading().events.said == "app"
    shop, app = settings.readers()
    assert (shop.broker.topic, app.broker.topic) == ("shop.events", "app.events")
    assert {one.broker.group for one in (settings, shop, app)} == {"lifelong"}
    with pytest.raises(SettingsError, match="'shopp' is not in the settings; did you mean shop"):
        settings.narrowed(["shop", "shopp"])


def test_without_sources_there_is_one_reader() -> None:
    assert Settings().readers() == (Settings(),)


def test_sources_have_limits_and_actions_of_all_events_but_no_mapping() -> None:
    events = {"action_names": ["look"], "max_id_bytes": 20}
    shop, app = sources(SHOP, APP, events=events).sources
    assert shop.action_names == app.action_names == ("look",)
    assert (shop.max_id_bytes, app.max_id_bytes) == (20, 9)


@pytest.mark.parametrize("named", [None, "shopp"])
def test_a_source_that_is_not_told_is_asked_for(named: str | None) -> None:
    with pytest.raises(SettingsError, match="shop") as caught:
        sources(SHOP, APP).reading(named)
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="no name"):
        Settings().reading("shop")


@pytest.mark.parametrize(
    ("entries", "more", "message"),
    [
        ([SHOP, SHOP], {}, "sources: two have the name 'shop'"),
        ([SHOP, APP | {"topic": "shop.events"}], {}, "two have the topic 'shop.events'"),
        ([{"name": "shop"}], {}, "sources.shop: has no topic"),
        ([SHOP | {"fromat": 1}], {}, "sources.shop.fromat is not a setting; did you mean format?"),
        ([SHOP | {"format": "xml"}], {}, "sources.shop.format = 'xml': must be 'json'"),
        ([SHOP | {"fields": {"user": "x"}}], {}, "'user' is not one of our fields"),
        ([SHOP | {"action_names": ["x"]}], {}, "shop has action_names of its own"),
        ([SHOP], {"events": {"time_unit": "s"}}, "nobody reads events.time_unit"),
        ([SHOP], {"broker": {"topic": "x"}}, "nobody reads broker.topic"),
        ([3], {}, "sources is not a list of entries"),
    ],
)
def test_what_is_wrong_with_sources_is_named(
    entries: list[Any], more: dict[str, Any], message: str
) -> None:
    assert message in error({"sources": entries, **more})


def test_sources_come_of_the_file_or_of_the_environment(tmp_path: Path) -> None:
    config = write(
        tmp_path, "[[sources]]\nname = 'shop'\ntopic = 'a'\nonly = { kind = [1, true] }\n"
    )
    assert load_settings(config=config, environ={}).sources[0].only == {"kind": (1, True)}
    environ = {"LIFELONG_SOURCES": '[{"name": "shop", "topic": "b"}]'}
    assert load_settings(config=config, environ=environ).sources[0].topic == "b"
    assert "must be a JSON array" in error(LIFELONG_SOURCES="shop")
    config.write_text("[[sources]]\nname = 'shop'\ntopic = 'a'\nformat = 'x'\n")
    assert error(config=config).startswith(f"{config}: sources.shop.format = 'x'")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.[0]", "is not JMESPath"),
        ("a[0].b", None),
        ("a b (c)", None),
        ("a[?b", "is not JMESPath"),
        ("a..b", "dotted path"),
        ([], "names nothing"),
    ],
)
def test_paths_are_read_with_the_settings(path: object, message: str | None) -> None:
    given = {"events.fields": {"user_id": path}}
    if message is None:
        load_settings(given, environ={})
    else:
        assert message in error(given)
