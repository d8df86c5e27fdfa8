#!/bin/sh
# venv.sh DIRECTORY: make a virtual environment with the tests' requirements, under $PYTHON.
# Quiet when it succeeds; else one reason, and what to do. DIRECTORY/made is its stamp.
set -u
venv=$1
python=${PYTHON:-python3}
tests=$(dirname "$0")

fail() {
    printf '%s\n' "$output" | tail -n 8 >&2
    echo "$venv: $*" >&2
    exit 1
}

output=$(command -v "$python" 2>&1) || fail "no $python here: apt-get install python3-venv"
rm -rf "$venv"
output=$("$python" -m venv "$venv" 2>&1) ||
    fail "$python makes no virtual environment; Debian: apt-get install python3-venv"
output=$("$venv/bin/python" -m pip install --disable-pip-version-check -q \
    -r "$tests/requirements.txt" 2>&1) ||
    fail 'pip cannot install tests/requirements.txt (it needs the network, or a package index)'
touch "$venv/made"
