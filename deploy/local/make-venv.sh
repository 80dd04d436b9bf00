#!/bin/sh
# Makes ./.venv with exactly the locked versions, each checked by its hash.
set -eu

python="${PYTHON:-python3}"
venv=.venv

if ! command -v "$python" >/dev/null 2>&1 ||
    ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Hansa needs Python 3.11 or newer as $python; name another one with: make PYTHON=/path/to/python3" >&2
    exit 1
fi

make_it() { "$python" -m venv --clear "$venv" >/dev/null 2>&1; }

if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    : # Kept: what the locks name is installed over it.
elif ! make_it; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "$python -m venv does not work; on Debian ask for: apt-get install python3-venv" >&2
        exit 1
    fi
    echo "Installing the Debian package python3-venv"
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
        python3-venv >/dev/null
    make_it || { echo "$python -m venv still does not work." >&2; exit 1; }
fi

echo "Installing the locked Python packages into ./$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
VIRTUAL_ENV="$PWD/$venv" "$venv/bin/uv" pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
VIRTUAL_ENV="$PWD/$venv" "$venv/bin/uv" pip install --quiet --no-deps --no-build-isolation -e .
touch "$venv/.ready"
