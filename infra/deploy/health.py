"""``python -m infra.deploy.health URL``: whether a service says that it is well.

For images, which have no curl. An https URL is believed whatever its certificate: it is of this
machine.
"""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request


def main(url: str) -> int:
    """0 if it answers with 200; else 1, with what it said on standard output."""
    believing = ssl.create_default_context()
    believing.check_hostname = False
    believing.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=4, context=believing):  # noqa: S310  # the image's own
            return 0
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode(errors="replace")
    except OSError as error:
        said = f"{url}: {error}"
    sys.stdout.write(f"{said}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
