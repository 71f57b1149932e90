from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from infra.behaviors import partition_owner
from infra.segments import SEGMENT
from infra.settings import BrokerSettings
from infra.store import StoreOptions
from infra.stores.lmdb import LmdbStore
from lifelong.shipped import BUNDLE
from models.bundle import states_of


class Checked(NamedTuple):
    """`check` where no broker is, in a directory of its own."""

    directory: Path
    done: subprocess.CompletedProcess[str]
    report: dict[str, Any]


COMMANDS = (
    "demo",
    "broker",
    "worker",
    "scorer",
    "replay",
    "backfill",
    "forget",
    "store backup",
    "store restore",
    "store compact",
    "bench store",
    "train",
    "evaluate",
    "export",
    "sign",
    "inspect",
    "check",
    "bench stream",
    "bench extract",
    "bench catalog",
)
NOBODY = "127.0.0.1:9"
EVENT = {"user_id": "ann", "item_id": "22423", "action": "click", "event_time": 1_700_000_000_000}


def environment(temporary: Path) -> dict[str, str]:
    """Of a command: nothing of ours, and its temporary files where the test looks."""
    return {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TMPDIR": str(temporary),
    }


def lifelong(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in a directory without settings."""
    return subprocess.run(
        [sys.executable, "-m", "lifelong", *map(str, arguments)],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It failed with exit code 1 and one line on standard error that holds all words."""
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("lifelong: ")
    for word in words:
        assert word in line


def make_store(directory: Path) -> str:
    """The URL of a store without users."""
    LmdbStore(directory / "store").close()
    return f"lmdb://{directory / 'store'}"


@pytest.fixture
def events(tmp_path: Path) -> Path:
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps({**EVENT, "event_id": f"e{i}"}) + "\n" for i in range(3)))
    return file


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    directory = tmp_path_factory.mktemp("checked")
    arguments = ["--bootstrap", NOBODY, "--store", "memory://", "--json", "report.json"]
    done = lifelong("check", *arguments, cwd=directory)
    return Checked(directory, done, json.loads((directory / "report.json").read_text()))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    done = lifelong(*command.split(), "--help", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{command} [OPTIONS]" in done.stdout


def test_help_names_every_command(tmp_path: Path) -> None:
    done = lifelong("--help", cwd=tmp_path)

    assert all(f"\n  {command.split()[0]} " in done.stdout for command in COMMANDS)


def test_a_misspelt_command_is_a_usage_error(tmp_path: Path) -> None:
    done = lifelong("wroker", cwd=tmp_path)

    assert done.returncode == 2
    assert "wroker" in done.stderr
    assert "Traceback" not in done.stderr


BAD_SETTINGS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "no value": (["--set", "store.length"], ["store.length", "KEY=VALUE"]),
    "a bad value": (["--set", "store.length=many"], ["store.length", "many"]),
    "a misspelt key": (["--set", "store.lenght=5"], ["store.lenght", "store.length"]),
    "a misspelt section": (["--set", "stoer.length=5"], ["stoer"]),
    "a bad value of a flag": (["--store", "mongodb://here"], ["--store = 'mongodb://here'"]),
    "a bad value of --set": (["--set", "log.level=loud"], ["--set log.level = 'loud'"]),
    "--set after the flag": (
        ["--store", "memory://", "--set", "store.url=mongodb://here"],
        ["--set store.url = 'mongodb://here'"],
    ),
    "a section as a value": (["--set", "store=5"], ["store"]),
    "both a section and a key": (["--set", "store=5", "--set", "store.length=5"], ["store"]),
    "no such file": (["--config", "absent.toml"], ["absent.toml"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_told_in_one_line(case: str, tmp_path: Path) -> None:
    arguments, words = BAD_SETTINGS[case]

    assert_one_line(lifelong("check", *arguments, cwd=tmp_path), *words)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = lifelong("replay", "absent.jsonl", "--bootstrap", NOBODY, cwd=tmp_path)

    assert_one_line(done, "absent.jsonl")


def test_replay_tells_a_broker_that_does_not_answer(tmp_path: Path, events: Path) -> None:
    assert_one_line(lifelong("replay", events, "--bootstrap", NOBODY, cwd=tmp_path), NOBODY)


def test_replay_tells_a_choice_that_it_does_not_have(tmp_path: Path, events: Path) -> None:
    assert_one_line(lifelong("replay", events, "--on-bad", "cry", cwd=tmp_path), "cry", "skip")


def test_backfill_tells_a_store_url_that_it_cannot_read(tmp_path: Path, events: Path) -> None:
    done = lifelong(
        "backfill", events, "--partitions", "8", "--store", "mongodb://here", cwd=tmp_path
    )

    assert_one_line(done, "mongodb://here", "lmdb://")


def test_backfill_fills_the_store_that_inspect_reads(tmp_path: Path, events: Path) -> None:
    store = ["--store", f"lmdb://{tmp_path / 'store'}"]

    filled = lifelong("backfill", events, "--partitions", "8", *store, "--json", "-", cwd=tmp_path)
    shown = lifelong("inspect", "ann", *store, "--json", "-", cwd=tmp_path)

    assert json.loads(filled.stdout)["behaviors"] == 3
    assert json.loads(shown.stdout)["events"] == 3


def test_actions_that_the_platform_declares_are_stored_and_shown(tmp_path: Path) -> None:
    (tmp_path / "lifelong.toml").write_text('[events]\naction_names = ["skipped", "solved"]\n')
    event = EVENT | {"event_id": "e", "action": "solved"}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    store = ["--store", f"lmdb://{tmp_path / 'store'}", "--json", "-"]

    lifelong("backfill", "events.jsonl", "--partitions", "8", *store, cwd=tmp_path)
    shown = lifelong("inspect", "ann", *store, cwd=tmp_path)
    fewer = ["--set", 'events.action_names=["skipped"]']
    undeclared = lifelong("inspect", "ann", *store, *fewer, cwd=tmp_path)

    assert [one["action"] for one in json.loads(shown.stdout)["newest"]] == ["solved"]
    assert [one["action"] for one in json.loads(undeclared.stdout)["newest"]] == ["unknown (2)"]


def test_backfilled_users_are_due_for_the_shipped_bundle(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    rows = [{**EVENT, "event_id": f"e{i}"} for i in range(SEGMENT)]
    events.write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f"lmdb://{tmp_path / 'store'}"

    lifelong("backfill", events, "--partitions", "1", "--store", url, cwd=tmp_path)

    digest = states_of(BUNDLE)
    assert digest is not None
    store = LmdbStore(tmp_path / "store", StoreOptions(read_only=True))
    due = store.due(partition_owner(BrokerSettings().topic, 0), digest, 10)
    store.close()
    assert [one.user for one in due] == ["ann"]


def test_inspect_tells_a_user_that_it_does_not_know(tmp_path: Path) -> None:
    made = make_store(tmp_path)

    assert_one_line(lifelong("inspect", "nobody", "--store", made, cwd=tmp_path), "'nobody'")


def test_inspect_tells_a_store_that_is_not_there(tmp_path: Path) -> None:
    absent = tmp_path / "absent"

    assert_one_line(lifelong("inspect", "--store", f"lmdb://{absent}", cwd=tmp_path), str(absent))
    assert not absent.exists()


def test_a_json_file_that_cannot_be_written_is_told(tmp_path: Path, events: Path) -> None:
    target = tmp_path / "absent" / "result.json"

    done = lifelong("inspect", "--store", make_store(tmp_path), "--json", target, cwd=tmp_path)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "--json" in line
    assert str(target) in line


@pytest.mark.parametrize(("command", "port"), [("worker", "--metrics-port"), ("scorer", "--port")])
def test_a_service_tells_a_bundle_that_is_not_there(
    command: str, port: str, tmp_path: Path
) -> None:
    store = ["--store", f"lmdb://{tmp_path / 'store'}"]

    done = lifelong(command, "--bundle", "absent", port, "0", *store, cwd=tmp_path)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "absent" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["worker", "scorer"])
def test_a_service_tells_a_store_url_that_it_cannot_read(command: str, tmp_path: Path) -> None:
    done = lifelong(command, "--store", "lmdb:/once", cwd=tmp_path)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "lmdb:/once" in done.stderr.splitlines()[-1]


def test_check_says_what_is_wrong_and_what_is_not(checked: Checked) -> None:
    assert (checked.done.returncode, checked.done.stderr) == (3, "")
    assert checked.report["ok"] is False
    found = {check["name"]: check["ok"] for check in checked.report["checks"]}
    assert found == {
        "settings": True,
        "broker": False,
        "topic": False,
        "dead letters": False,
        "store": True,
        "progress": False,
        "bundle": True,
    }


def test_check_prints_one_line_a_finding_however_narrow_the_terminal(checked: Checked) -> None:
    lines = checked.done.stdout.splitlines()

    marks = [line.split()[0] for line in lines]
    assert marks == ["ok", "FAIL", "FAIL", "FAIL", "warn", "FAIL", "ok"]
    assert all(
        line.endswith(check["detail"])
        for line, check in zip(lines, checked.report["checks"], strict=True)
    )


def test_nothing_is_left_in_the_temporary_directory(checked: Checked) -> None:
    assert sorted(path.name for path in checked.directory.iterdir()) == ["report.json"]


def test_an_interrupt_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lifelong", "broker", "--kind", "mock", "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE, text=True
    ) as broker:
        try:
            assert broker.stderr is not None
            assert any("Ctrl-C ends it" in line for line in broker.stderr)
            broker.send_signal(signal.SIGINT)
            _, errors = broker.communicate(timeout=60)
        finally:
            broker.kill()

    assert (broker.returncode, errors) == (130, "lifelong: interrupted\n")


def test_the_demo_tells_a_kind_of_broker_that_it_does_not_have(tmp_path: Path) -> None:
    done = lifelong("demo", "--broker", "rabbit", cwd=tmp_path)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "rabbit" in line
