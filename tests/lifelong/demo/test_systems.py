from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SettingsError
from lifelong.demo.run import DemoOptions, run_demo


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (DemoOptions(system="all", keep=True), "--keep"),
        (DemoOptions(system="all", store="lmdb://somewhere"), "--store"),
        (DemoOptions(system="all", bundle=Path("mine")), "--bundle"),
    ],
)
def test_what_is_of_one_system_is_refused_for_all(options: DemoOptions, flag: str) -> None:
    with pytest.raises(SettingsError, match=flag):
        run_demo(options, quiet=True)


def test_a_system_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="encode, sdim, twin or all"):
        run_demo(DemoOptions(system="dien"), quiet=True)
