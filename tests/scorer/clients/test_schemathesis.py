"""What schemathesis makes of the OpenAPI document, asked of a live scorer."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from infra.settings import Settings
from tests.scorer.clients.conftest import PYTHON

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)

NAMES = """
[parameters]
"path.name" = "tiny"
"path.kind" = "malformed"
"""
"""What it cannot guess, so that it comes past 404."""


@pytest.mark.slow
def test_answers_are_what_the_document_says(scorer: Settings, tmp_path: Path) -> None:
    """Slow: schemathesis asks hundreds of requests, and starts as slowly as any of them."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(NAMES)
    document = f"http://127.0.0.1:{scorer.scorer.port}/openapi.json"
    options = ["--phases=examples,coverage,fuzzing", "--max-examples=3", "--seed=1"]
    checks = f"--checks={','.join(CHECKS)}"
    done = subprocess.run(
        [PYTHON.with_name("st"), f"--config-file={config}", "run", document, checks, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found = re.search(r"Selected: (\d+)/\1\s+Tested: \1$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert int(found[1]) > 15
