#!/usr/bin/env bash
# Makes .venv from the pinned, hashed requirements: make_env.sh cpu|gpu. Returns at once when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-cpu}
venv=.venv

say() { printf '%s\n' "$*" >&2; }

python311() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    say "Python 3.11 is missing: the pinned requirements are for it."
    say "  Debian 12:  apt-get install python3.11 python3.11-venv"
    say "  any Linux:  uv python install 3.11"
    say "  or name it: make PYTHON=/path/to/python3.11 ..."
    exit 1
}

uv_program() {
    if uv --version >/dev/null 2>&1; then
        command -v uv
        return
    fi
    if [ ! -x .cache/uv/bin/uv ]; then
        say "fetching uv into .cache/uv, once"
        if ! "$1" -m venv --clear .cache/uv >&2; then
            say "$1 cannot make a virtual environment. Debian 12: apt-get install python3.11-venv"
            exit 1
        fi
        .cache/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt >&2
    fi
    printf '%s\n' "$PWD/.cache/uv/bin/uv"
}

loads() { "$venv/bin/python" -IS -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1" 2>/dev/null; }

missing_from_the_system() {
    local packages=()
    command -v bwrap >/dev/null || packages+=(bubblewrap)
    loads libnuma.so.1 || packages+=(libnuma1)
    loads libseccomp.so.2 || packages+=(libseccomp2)
    if [ ${#packages[@]} -gt 0 ]; then
        say "missing on this machine: ${packages[*]} (bubblewrap and libseccomp2 isolate tools, libnuma1 is for vLLM on CPU)"
        say "  Debian, Ubuntu: apt-get install ${packages[*]}"
    fi
}

wanted=$(cat pyproject.toml requirements/*.txt requirements/*.in requirements/make_env.sh | sha256sum | cut -c1-16)-$extra-$PWD
if [ "$(cat "$venv/made-from" 2>/dev/null)" != "$wanted" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(python311)
    uv=$(uv_program "$python")
    say "making $venv from requirements/$extra.txt"
    rm -f "$venv/made-from"
    "$venv/bin/python" -c '' 2>/dev/null || "$uv" venv --quiet --clear --python "$python" "$venv"
    "$uv" pip sync --quiet --python "$venv/bin/python" --require-hashes --compile-bytecode "requirements/$extra.txt"
    "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
    printf '%s' "$wanted" >"$venv/made-from"
fi
missing_from_the_system
