#!/bin/sh
# What an image holds, step by step; the Dockerfile runs these, and so do tests, in a plain folder.
#
#   build.sh requirements serve|train    an environment in $PREFIX with what is pinned, and no more
#   build.sh package                     Lifelong itself, from the working directory
#   build.sh compile                     the kernels of the services, so that no start compiles any
set -eu
prefix=${PREFIX:?names the environment\'s folder}
pip() { "$prefix/bin/python" -m pip --disable-pip-version-check --no-input --quiet "$@"; }

case ${1:-} in
requirements)
    python3 -m venv "$prefix"
    # With their bytecode: whoever runs it can write nothing there.
    pip install --no-cache-dir --require-hashes --requirement "requirements/$2.txt"
    ;;
package)
    # What makes the wheel stays out of the image.
    tools=$(mktemp -d)
    pip install --no-cache-dir --target "$tools" --require-hashes --requirement requirements/build.txt
    PYTHONPATH=$tools "$prefix/bin/python" -m hatchling build --target wheel --directory "$tools/wheel"
    pip install --no-index --no-deps "$tools"/wheel/lifelong-*.whl
    rm -rf "$tools"
    # Nobody installs anything into an image that runs.
    pip uninstall --yes pip
    ;;
compile)
    "$prefix/bin/lifelong" compile
    ;;
*)
    echo "build.sh: ${1:-nothing} is no step; there are requirements, package and compile" >&2
    exit 2
    ;;
esac
