"""A command as a container runs it: read-only root, a /tmp of its own, a nameless user, no HOME.

Namespaces do that, without a container. Its data folder is at `DATA`, and all else is what this
machine has, to read alone.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.conftest import require

DATA = "/mnt"
USER = "10001"

# A second user namespace, in which whoever is root here is the image's user.
BOX = """
mount --bind {data} {at}
mount -t tmpfs tmpfs /tmp
mount -o remount,bind,ro /
exec unshare --user --map-user={user} --map-group={user} env --chdir={at} -i {environment} {command}
"""


def boxed(
    command: Sequence[str],
    data: Path,
    environment: Mapping[str, str],
    shown: Mapping[Path, str] | None = None,
) -> list[str]:
    """The command, in such a box; ``shown`` are folders of /tmp, and where they are seen."""
    found = shutil.which("unshare") is not None
    possible = found and subprocess.run(["unshare", "-Urm", "true"], check=False).returncode == 0
    require(possible, "namespaces (unshare -Urm)")
    script = BOX.format(
        data=shlex.quote(str(data)),
        at=DATA,
        user=USER,
        environment=shlex.join(f"{name}={value}" for name, value in environment.items() if value),
        command=shlex.join(command),
    )
    binds = "".join(
        f"mount --bind {shlex.quote(str(folder))} {at}\nmount -o remount,bind,ro {at}\n"
        for folder, at in (shown or {}).items()
    )
    return ["unshare", "-Urm", "sh", "-euc", binds + script]


@contextlib.contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says what it has to say into a file, killed at the end if it still runs."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
