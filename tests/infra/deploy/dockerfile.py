"""What the image's Dockerfile says, stage by stage."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "infra" / "deploy" / "image" / "Dockerfile"


def stages() -> dict[str, list[tuple[str, str]]]:
    """(instruction, what follows) by stage, those of the stage that it is made from in front."""
    found: dict[str, list[tuple[str, str]]] = {}
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    stage: list[tuple[str, str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = list(found.get(base, []))
        elif word:
            stage.append((word, rest.strip()))
    return found


def environment(stage: str) -> dict[str, str]:
    """What ENV sets, but for the PATH."""
    lines = [rest for word, rest in stages()[stage] if word == "ENV"]
    pairs = [pair.split("=", 1) for line in lines for pair in shlex.split(line)]
    return {name: value for name, value in pairs if name != "PATH"}


def runs(stage: str) -> list[str]:
    """Its RUN lines, in order."""
    return [rest for word, rest in stages()[stage] if word == "RUN"]


def started(stage: str) -> list[str]:
    """What a container runs unless told otherwise."""
    last = {word: rest for word, rest in stages()[stage] if word in {"ENTRYPOINT", "CMD"}}
    return [*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])]


def health_check(stage: str) -> list[str]:
    """The command that tells whether it is healthy."""
    (line,) = [rest for word, rest in stages()[stage] if word == "HEALTHCHECK"]
    command: list[str] = json.loads(line.partition("CMD ")[2])
    return command
