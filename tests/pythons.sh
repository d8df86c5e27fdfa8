#!/bin/sh
# The core of the suite under every interpreter from 3.6 up that is on PATH or in ~/.pyenv, one for
# each minor version. "make test-pythons" starts it and gives $PYTEST and $AS_ROOT; its arguments
# are for pytest.
set -u
tests=$(dirname "$0")
first=6 last=30             # minor versions of Python 3 to look for
work=$(mktemp -d) || exit
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

# Commands that may be python3.$1, the ones on PATH first.
candidates() {
    echo "python3.$1"
    (
        IFS=:
        for directory in $PATH; do
            echo "$directory/python3.$1"
        done
    )
    for command in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$1"*/bin/python3."$1"; do
        echo "$command"
    done
}

# The interpreter itself behind the first candidate that really runs (a pyenv shim may not), and
# its full version.
find_python() {
    candidates "$1" | while read -r command; do
        "$command" -c 'import os, platform, sys
print(os.path.realpath(sys.executable), platform.python_version())' 2> /dev/null && break
    done
}

minor=$first
while [ $minor -le $last ]; do
    find_python $minor > "$work/found" < /dev/null
    if [ -s "$work/found" ]; then
        read -r python version < "$work/found"
        echo "found: Python $version: $python"
        echo "$minor $version $python" >> "$work/pythons"
    fi
    minor=$((minor + 1))
done
if [ ! -s "$work/pythons" ]; then
    echo 'no interpreter from python3.6 up was found' >&2
    exit 1
fi

# A virtual environment for each, two at a time: making one is slow and mostly waiting.
while read -r minor version python; do
    venv=.venv-3.$minor
    if [ "$venv/made" -nt "$tests/requirements.txt" ] && "$venv/bin/python" -c 'import pytest' \
        2> /dev/null && [ "$("$venv/bin/python" -V)" = "Python $version" ]; then
        continue
    fi
    printf '%s\0%s\0' "$python" "$venv"
done < "$work/pythons" > "$work/tomake"
xargs -0 -r -n 2 -P 2 sh -c 'PYTHON=$1 sh "$0/venv.sh" "$2"' "$tests" < "$work/tomake"

failed=
while read -r minor version python; do
    if [ ! -e ".venv-3.$minor/made" ]; then
        echo "skipped: Python $version has no virtual environment with pytest (reason above)"
        if [ "${CI-}" = true ]; then
            failed="$failed $version"
        fi
    fi
done < "$work/pythons"

# Two interpreters at a time; what they print comes in order.
run_core() {
    while read -r minor version python; do
        mkdir "$work/run-$minor" 2> /dev/null || continue       # another has it
        [ -e ".venv-3.$minor/made" ] || continue
        VDELXC_PYTHON=$python $AS_ROOT ".venv-3.$minor/bin/python" $PYTEST -q -m core "$@" \
            < /dev/null > "$work/run-$minor/output" 2>&1
        echo $? > "$work/run-$minor/status"
    done
}
run_core "$@" < "$work/pythons" &
run_core "$@" < "$work/pythons"
wait

while read -r minor version python; do
    [ -e ".venv-3.$minor/made" ] || continue
    echo
    echo "Python $version"
    cat "$work/run-$minor/output"
    [ "$(cat "$work/run-$minor/status")" = 0 ] || failed="$failed $version"
done < "$work/pythons"

if [ -n "$failed" ]; then
    echo "failed under:$failed" >&2
    exit 1
fi
