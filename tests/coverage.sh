#!/bin/sh
# coverage.sh VENV [ARGUMENT...]: run the suite and report which lines of the two scripts it ran, in
# the tests' own process and in every program and session that they started. Started by "make
# coverage"; the further arguments are for pytest. Without any, the whole suite has run, and each of
# the two scripts must reach LEAST percent.
#
# A lower bound: a process that is killed, or that may write no files (a relay whose log is none),
# does not report its lines. Relays gave up their user, so that everybody may write the data.
set -u
LEAST=95
venv=$1
shift
top=$(pwd)
hook=
work=$(mktemp -d) || exit
chmod 1777 "$work"
trap 'rm -rf "$work" "$hook"' EXIT
trap 'exit 130' INT TERM HUP

"$venv/bin/python" -c 'import coverage' 2> /dev/null ||
    "$venv/bin/python" -m pip install --disable-pip-version-check -q coverage==7.10.7 || exit

# Tests and keepers end sessions that may be ending already: no signal interrupts a report.
hook=$("$venv/bin/python" -c \
    'import sysconfig; print(sysconfig.get_path("purelib") + "/uninterrupted.py")') || exit
cat > "$hook" << END
import os, signal, coverage

class Uninterrupted(coverage.CoveragePlugin):
    pass

def cover():
    leave = os._exit
    def leave_uninterrupted(status):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
        leave(status)
    os._exit = leave_uninterrupted

def coverage_init(registry, options):
    os.register_at_fork(after_in_child=cover)
END

export COVERAGE_RCFILE="$work/rc"
cat > "$COVERAGE_RCFILE" << END
[run]
data_file = $work/data
include =
    $top/vdelxc?.py
    */vdelxc????????/vdelxc?.py
plugins = uninterrupted
parallel = true
sigterm = true
patch =
    subprocess
    _exit
disable_warnings = no-data-collected, module-not-measured
[paths]
copies =
    $top
    */vdelxc????????
[report]
show_missing = true
precision = 2
exclude_also = raise NotImplementedError
END

jobs=1
[ $# != 0 ] || jobs=2
export VDELXC_PYTHON="$(realpath "$venv/bin")/python" AS_ROOT
PYTEST="-m coverage run $PYTEST" sh tests/jobs.sh "$venv" $jobs "$@"
status=$?
echo
"$venv/bin/python" -m coverage combine -q 2> /dev/null &&
    "$venv/bin/python" -m coverage report || exit
if [ $# = 0 ]; then
    for script in vdelxc?.py; do
        percent=$("$venv/bin/python" -m coverage report --include="$top/$script" --format=total)
        if ! awk "BEGIN { exit !($percent >= $LEAST) }"; then
            echo "$script: only $percent % of its lines, not $LEAST" >&2
            status=1
        fi
    done
fi
exit $status
