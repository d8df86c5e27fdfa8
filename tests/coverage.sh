#!/bin/sh
# coverage.sh VENV [ARGUMENT...]: run the suite and report which lines of the two scripts it ran, in
# the tests' own process and in every program and session that they started. Started by "make
# coverage"; the further arguments are for pytest.
#
# A lower bound: a process that is killed, that gave up its user, or that may write no files does
# not report its lines.
set -u
venv=$1
shift
top=$(pwd)
work=$(mktemp -d) || exit
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

"$venv/bin/python" -c 'import coverage' 2> /dev/null ||
    "$venv/bin/python" -m pip install --disable-pip-version-check -q coverage==7.10.7 || exit

export COVERAGE_RCFILE="$work/rc"
cat > "$COVERAGE_RCFILE" << END
[run]
data_file = $work/data
include = $top/vdelxc?.py
parallel = true
sigterm = true
patch =
    subprocess
    fork
    _exit
disable_warnings = no-data-collected, module-not-measured
[report]
show_missing = true
END

VDELXC_PYTHON=$(realpath "$venv/bin")/python $AS_ROOT "$venv/bin/python" -m coverage run \
    $PYTEST -q tests "$@"
status=$?
echo
"$venv/bin/python" -m coverage combine -q && "$venv/bin/python" -m coverage report || exit
exit $status
