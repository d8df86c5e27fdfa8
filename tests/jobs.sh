#!/bin/sh
# jobs.sh VENV NUMBER [ARGUMENT...]: the suite, by so many runs of pytest at the same time, each of
# which takes the next file of tests that none of the others has. Started by "make test", which
# gives $PYTEST and $AS_ROOT; the arguments are for pytest. What the first run prints is seen as it
# comes, and of the others at the end.
set -u
python=$1/bin/python jobs=$2
shift 2
if [ "$jobs" = 1 ]; then
    exec $AS_ROOT "$python" $PYTEST -q tests "$@"
fi
work=$(mktemp -d) || exit
pids=
trap 'rm -rf "$work"' EXIT
trap 'kill -INT $pids; wait; exit 130' INT TERM HUP
mkdir "$work/share"

echo "The suite is shared by $jobs jobs; with JOBS=1, or any ARGS, there is one."
job=2
while [ "$job" -le "$jobs" ]; do
    $AS_ROOT "$python" $PYTEST -q tests --share "$work/share" --job "$job" "$@" \
        < /dev/null > "$work/output-$job" 2>&1 &
    pids="$pids $!"
    job=$((job + 1))
done
$AS_ROOT "$python" $PYTEST -q tests --share "$work/share" --job 1 "$@" < /dev/null
status=$?
job=2
for pid in $pids; do
    wait "$pid" || status=1
    echo
    echo "job $job"
    cat "$work/output-$job"
    job=$((job + 1))
done
exit $status
