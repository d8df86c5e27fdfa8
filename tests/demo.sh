#!/bin/sh
# The demo: two containers on one VDE network, told command by command.
#
# Everything happens in namespaces of its own (network, mounts, processes; without root also users)
# that end with this script, however it ends: no route, file, interface or process is left.
set -u
cd "$(dirname "$0")/.." || exit
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
python=${VDELXC_PYTHON:-python3}
socket=/run/vde/vdelxcs             # /run is the demo's own

fail() {
    echo "demo: $*" >&2
    exit 1
}

# What is missing on this machine, and what to do about it.
check_machine() {
    for tool in ip:iproute2 ping:iputils-ping unshare:util-linux nsenter:util-linux; do
        command -v ${tool%:*} > /dev/null ||
            fail "${tool%:*} is missing: apt-get install ${tool#*:} (or: make test-tools)"
    done
    [ -e /dev/net/tun ] || fail '/dev/net/tun is missing; as root: modprobe tun; if that does' \
        'not help: mkdir -p /dev/net; mknod -m 666 /dev/net/tun c 10 200'
    (: <> /dev/net/tun) 2> /dev/null || fail '/dev/net/tun cannot be opened by this user; run' \
        'the demo as root, or let everybody use the device: chmod 666 /dev/net/tun'
}

# Start this script again, inside its namespaces; end them when interrupted.
outside() {
    check_machine
    for users in '' --map-root-user none; do
        [ "$users" = none ] && fail 'no namespaces for this user here; run the demo as root'
        unshare $users --net --mount --pid --fork true 2> /dev/null && break
    done
    trap 'kill -KILL "${!-}" 2> /dev/null; wait; fail interrupted' INT TERM HUP
    # setsid: an interrupt typed at the terminal is for this process alone, which then tells.
    setsid unshare $users --net --mount --pid --fork --kill-child sh tests/demo.sh inside &
    wait $!
    exit
}

# The next of STEPS parts of the story.
STEPS=6 step=0
say() {
    step=$((step + 1))
    echo
    echo "[$step/$STEPS] $*"
}

# run PLACE COMMAND...: show the command and run it, on the host or in a container.
run() {
    place=$1
    shift
    echo "($place)\$ $*"
    if [ "$place" = host ]; then
        "$@"
    else
        nsenter --net="/run/netns/$place" "$@"
    fi || fail "failed with exit status $?: ($place)\$ $*"
}

# A namespace that plays a container, and what a user types in it.
container() {
    ip netns add "$1" || fail "no network namespace for container $1"
    run "$1" "$python" vdelxcc.py -s $socket -a "$2/24" vxvde://
}

inside() {
    mount -t tmpfs demo /run || fail 'no file system for the demo'
    mkdir -m 755 /run/vde
    echo 'Two containers (network namespaces) get an Ethernet interface each, on one VDE network.'

    say 'This host has no network card: multicast, which carries vxvde://, stays on lo.'
    run host ip link set lo up
    run host ip route add 239.0.0.0/8 dev lo

    say 'The daemon listens on a socket that the containers share.'
    run host "$python" vdelxcd.py -d -p /run/vdelxcd.pid $socket

    say 'Container a asks for the network vxvde://. The client makes a TAP interface, vde0, gives it'
    echo 'an address, and hands it to the daemon. It needs the socket and /dev/net/tun for that.'
    container a 10.0.0.1

    say 'Container b does the same.'
    container b 10.0.0.2

    say 'They reach each other.'
    run a ping -q -c 3 -i 0.2 -w 10 10.0.0.2
    run b ping -q -c 3 -i 0.2 -w 10 10.0.0.1

    say 'The interfaces outlive the daemon: each is served by a process of its own.'
    run host kill "$(cat /run/vdelxcd.pid)"
    run a ping -q -c 3 -i 0.2 -w 10 10.0.0.2

    echo
    echo 'It works. All of this ends now: nothing is left behind.'
}

case ${1-} in
    '') outside ;;
    inside) inside ;;
    *) fail 'it takes no arguments' ;;
esac
