"""Addresses, routes, MAC addresses: the client sets them without the ip command; all or nothing."""

import errno
import os
import re
import socket
import subprocess

import pytest

from conftest import CLIENT, DAEMON, PYTHON, require, wait_until
from answers import Listener

BARE = ['/usr/bin/env', '-i', 'PATH=/nowhere', PYTHON, CLIENT]      # no program can be found


def link(container, name='vde0'):
    """What ip says about an interface, in one line."""
    return container.ip('-o -d link show ' + name).stdout


def addresses(container, name='vde0'):
    """The addresses of an interface but for those that the kernel made: a list."""
    lines = container.ip('-o addr show ' + name).stdout.splitlines()
    return [line.split()[3] for line in lines if 'fe80:' not in line]


def failing(container, *argv, **more):
    """Run the client, which must fail in one line and leave everything as it was."""
    before = container.interfaces()
    done = container.client(*argv, check=False, **more)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1), done
    assert container.interfaces() == before
    return done.stderr[:-1]


# ---- ready to use -------------------------------------------------------------------------------

@pytest.mark.core
def test_one_command_makes_an_interface_that_is_ready_to_use(pair):
    """No program on PATH, so no ip."""
    daemon, a, b = pair
    for container, number in (a, 1), (b, 2):
        container.run(*(BARE + ['-s', daemon.socket, '-a', '10.0.0.%d/24' % number,
                                '-a', 'fd00::%d/64' % number, 'vxvde://']))
    a.ping('10.0.0.2')
    a.ping('fd00::2')
    assert addresses(a) == ['10.0.0.1/24', 'fd00::1/64']
    assert 'UP,LOWER_UP' in link(a)


@pytest.mark.core
def test_every_setting_is_made_as_ip_would(pair):
    daemon, container, _ = pair
    done = container.client(
        '-v', '-s', daemon.socket, '-i', 'lan7', '--mac', '2:0:0:0:0:FF', '--mtu', '1400',
        '-a', '192.0.2.9/30', '-a', '198.51.100.7/32', '-a', '2001:db8::9/64',
        '-g', '192.0.2.10', '--gateway=2001:db8::1', 'null://')
    assert done.stdout == 'lan7\n'
    assert ' mtu 1400 ' in link(container, 'lan7')
    assert 'link/ether 02:00:00:00:00:ff ' in link(container, 'lan7')
    lines = container.ip('-o addr show lan7').stdout
    assert 'inet 192.0.2.9/30 brd 192.0.2.11 scope global lan7' in lines
    assert 'inet 198.51.100.7/32 scope global lan7' in lines
    assert re.search(r'inet6 2001:db8::9/64 scope global nodad\b', lines)
    assert 'tentative' not in [line for line in lines.splitlines() if '2001:db8' in line][0]
    assert container.ip('route show default').stdout.split() == (
        'default via 192.0.2.10 dev lan7'.split())
    assert container.ip('-6 route show default').stdout.startswith(
        'default via 2001:db8::1 dev lan7 ')


def test_v_tells_each_step_in_order(pair):
    daemon, container, _ = pair
    done = container.client('-v', '-s', daemon.socket, '--mac', '02:00:00:00:00:01', '--mtu',
                            '1400', '-a', '10.0.0.1/24', '-g', '10.0.0.2', 'null://')
    assert done.stdout == 'vde0\n'
    assert done.stderr.splitlines() == ['vdelxcc: ' + step for step in (
        'connected to ' + daemon.socket, 'vde0: made',
        'vde0: TCP segments that come in are merged (GRO)',
        'vde0: MAC address 02:00:00:00:00:01', 'vde0: MTU 1400', 'vde0: address 10.0.0.1/24',
        'vde0: handed over, null://', 'vde0: up', 'vde0: default route through 10.0.0.2')]


def test_up_alone_brings_it_up_and_without_it_stays_down(pair):
    daemon, container, _ = pair
    container.client('-u', '-s', daemon.socket, 'null://')
    container.client('-s', daemon.socket, '--mac', 'auto:x', 'null://')
    assert ',UP' in link(container) and ',UP' not in link(container, 'vde1')
    assert addresses(container) == []


def test_a_router_with_a_link_local_address_needs_no_address(pair):
    daemon, container, _ = pair
    container.client('-s', daemon.socket, '-g', 'fe80::1', 'null://')
    assert 'default via fe80::1 dev vde0 ' in container.ip('-6 route').stdout
    container.client('-s', daemon.socket, '-a', 'fe80::7/64', 'null://')
    container.client('-s', daemon.socket, '-a', 'fe80::7/64', 'null://')    # on each link its own


def test_mac_of_a_text_is_the_one_of_the_manual(pair):
    daemon, container, _ = pair
    container.client('-s', daemon.socket, '--mac', 'auto:bb1', 'null://')
    assert 'link/ether e2:19:13:41:10:be ' in link(container)


def test_mtu_auto_comes_after_the_hand_over_and_before_up(host, new_host, new_container,
                                                          new_daemon):
    host.wire(new_host())
    container = new_container()
    done = container.client('-v', '-s', new_daemon(host).socket, '--mtu', 'auto', '-a',
                            'fd00::1/64', 'vxvde://')
    steps = done.stderr.splitlines()[-3:]
    assert steps == ['vdelxcc: vde0: handed over, vxvde://', 'vdelxcc: vde0: MTU 1450',
                     'vdelxcc: vde0: up']
    assert addresses(container) == ['fd00::1/64']


# ---- all or nothing -----------------------------------------------------------------------------

@pytest.mark.parametrize('argv, text', [
    (['-a', '10.0.0.1/24', '-g', '10.0.1.1'],
     'interface settings: Network is unreachable: vde0: default route through 10.0.1.1: '),
    (['-a', 'fd00::1/64', '-g', 'fd01::1'],
     'interface settings: No route to host: vde0: default route through fd01::1: '),
    (['-a', '10.0.0.1/24', '-g', '10.0.0.255'],
     'interface settings: Invalid argument: vde0: default route through 10.0.0.255'),
    (['-g', '10.0.0.2'],
     'interface settings: Network is unreachable: vde0: default route through 10.0.0.2: '),
])
def test_a_route_that_is_refused_leaves_no_interface(pair, argv, text):
    daemon, container, _ = pair
    assert failing(container, '-s', daemon.socket, *(argv + ['null://'])).startswith(text)
    assert container.ip('route').stdout + container.ip('-o -4 addr show scope global').stdout == ''
    wait_until(lambda: daemon.pids() == [daemon.process.pid], what='the session ends')


def test_a_second_default_route_is_refused(pair):
    daemon, container, _ = pair
    container.client('-s', daemon.socket, '-a', '10.0.0.1/24', '-g', '10.0.0.2', 'null://')
    text = failing(container, '-s', daemon.socket, '-a', '10.1.0.1/24', '-g', '10.1.0.2', 'null://')
    assert text.startswith('interface settings: File exists: vde1: default route through 10.1.0.2')
    assert 'a default route already' in text


def test_an_address_that_the_kernel_refuses_stops_before_the_daemon_is_asked(pair):
    daemon, container, _ = pair
    container.run('sh', '-c', 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6;'
                              'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6')
    text = failing(container, '-s', daemon.socket, '-a', '10.0.0.1/24', '-a', 'fd00::1/64',
                   'null://')
    assert text.startswith('interface settings: Permission denied: vde0: address fd00::1/64: IPv6')
    wait_until(lambda: 'hung up' in daemon.log())
    assert 'open interface: ' not in daemon.log()


@pytest.mark.parametrize('answer, argv, text', [
    (b'0\0', ['-a', '10.0.0.1/24', '-g', '10.0.1.1'], 'interface settings: Network is unreachable'),
    (b'13\0', ['-a', '10.0.0.1/24'], 'vdelxcd: Permission denied'),
    (b'0\0mtu=1000\0', ['-a', 'fd00::1/64', '--mtu', 'auto'],
     'interface settings: Invalid argument: vde0: MTU 1000: too small for the IPv6 addresses'),
])
def test_no_interface_is_left_with_a_daemon_that_keeps_the_descriptor(
        new_container, closing, tmp_path, answer, argv, text):
    listener = closing(Listener(str(tmp_path / 's'), [b'0\0mtu=1\0', answer]))
    assert failing(new_container(), '-s', listener.path, *(argv + ['null://'])).startswith(text)
    assert listener.fds


@pytest.mark.parametrize('advice', ['9' * 11, '9' * 300, '\xb2', '\x1b[2J two\nlines', ''])
def test_advice_that_is_no_number_is_none_and_told_in_one_line(new_container, closing, tmp_path,
                                                               advice):
    container = new_container()
    answers = [b'0\0mtu=1\0', b'0\0mtu=%s\0fragmented=1\0' % advice.encode('latin-1')] * 2
    listener = closing(Listener(str(tmp_path / 's'), answers))
    done = container.client('-v', '-s', listener.path, '--mtu', 'auto', 'null://')
    assert done.stderr.endswith('vdelxcc: this daemon gives no advice; the MTU stays 1500\n')
    done = container.client('-v', '-s', listener.path, 'null://')
    told = done.stderr.splitlines()
    assert len(told) == 5 and 'the MTU of 1500 does not fit' in told[-1]
    assert all(line.isprintable() for line in told)


def test_a_daemon_that_has_no_time_for_the_greeting_is_not_taken_for_a_plain_one(
        new_container, closing, tmp_path):
    container, listener = new_container(), closing(Listener(str(tmp_path / 's'), [b'11\0']))
    text = failing(container, '-s', listener.path, '--mtu', 'auto', 'null://')
    assert text.startswith('vdelxcd: Resource temporarily unavailable: ')


def test_an_interrupt_after_the_hand_over_leaves_no_interface(new_container, closing, tmp_path,
                                                              vdelxcc):
    """In this process: what run() does when it is interrupted at its last step."""
    container, listener = new_container(), closing(Listener(str(tmp_path / 's'), [b'1\0', b'0\0']))
    script = tmp_path / 'client.py'
    with open(CLIENT) as source:
        text = source.read()
    script.write_text(text.replace("interface.change_link('up', flags=IFF_UP)",
                                   'raise KeyboardInterrupt'))
    done = container.run(PYTHON, script, '-s', listener.path, '-u', 'null://', check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, '', '')
    assert container.interfaces() == {'lo'} and listener.fds


@pytest.mark.parametrize('redirection', ['>/dev/full', '2>/dev/full'])
def test_output_that_fails_leaves_no_interface(pair, redirection):
    daemon, container, _ = pair
    done = container.run('sh', '-c', 'exec "$@" ' + redirection, 'sh', PYTHON, CLIENT, '-v', '-s',
                         daemon.socket, 'null://', check=False)
    assert done.returncode == 1 and container.interfaces() == {'lo'}
    wait_until(lambda: daemon.pids() == [daemon.process.pid], what='the session ends')


# ---- what is there already ----------------------------------------------------------------------

def test_an_interface_that_is_there_is_an_error_and_never_taken_over(pair):
    daemon, container, _ = pair
    container.client('-s', daemon.socket, '-i', 'vde0', 'null://')
    container.ip('tuntap add dev vde1 mode tap')            # persistent: nobody holds it
    container.ip('tuntap add dev vde2 mode tun')
    for name in 'vde0', 'vde1', 'vde2':
        text = failing(container, '-s', daemon.socket, '-i', name, 'null://')
        assert text.startswith('interface definition: Device or resource busy: %s: ' % name)
        assert '-D' in text and '-i' in text
    assert container.client('-v', '-s', daemon.socket, 'null://').stdout == 'vde3\n'


def test_an_address_of_another_interface_is_an_error_before_anything_is_opened(pair):
    daemon, container, _ = pair
    container.client('-s', daemon.socket, '-a', '10.0.0.1/24', '-a', 'fd00::1/64', 'null://')
    for address in '10.0.0.1/16', 'fd00::1/128', 'fd00:0::0:1/64':
        text = failing(container, '-s', '/nowhere/s', '-a', '10.0.0.2/24', '-a', address, 'null://')
        assert text == ('interface settings: File exists: %s: another interface, vde0, has this '
                        'address' % address)


@pytest.mark.parametrize('kind', ['tap', 'tun'])
def test_delete_removes_what_nobody_holds(new_container, kind):
    container = new_container()
    container.ip('tuntap add dev t0 mode ' + kind)
    assert container.client('-D', 't0').stderr == ''
    assert container.interfaces() == {'lo'}


@pytest.mark.core
def test_delete_removes_an_interface_of_ours_and_its_session_ends(pair):
    daemon, container, _ = pair
    container.client('-s', daemon.socket, 'null://')
    done = container.run(*(BARE + ['-v', '--delete', 'vde0']))
    assert (done.stdout, done.stderr) == ('', 'vdelxcc: vde0: removed\n')
    assert container.interfaces() == {'lo'}
    wait_until(lambda: daemon.pids() == [daemon.process.pid], what='the session ends')


def test_delete_leaves_alone_what_is_no_tap(new_container):
    container = new_container()
    container.ip('link add veth0 type veth peer name veth1')
    for name in 'veth0', 'lo':
        assert failing(container, '-D', name) == (
            'interface removal: Invalid argument: %s: no TAP interface; left alone' % name)
    for name in 'vde0', '', 'x' * 20, '../lo', 'é', os.fsdecode(b'\xff\n'):
        text = failing(container, '-D', name, env=dict(os.environ, LC_ALL='C.UTF-8'))
        assert text.startswith('interface removal: No such device: '), text


# ---- reasons ------------------------------------------------------------------------------------

def ask(container, path, request, name=b'x0'):
    """What the daemon answers to a request that comes with a new TAP."""
    script = ("import fcntl,os,socket,struct,sys;"
              "t=os.open('/dev/net/tun',2);"
              "fcntl.ioctl(t,0x400454ca,struct.pack('16sH22x',%r,0x1002));"
              "s=socket.socket(1);s.connect(sys.argv[1]);"
              "s.sendmsg([%r],[(1,1,struct.pack('i',t))]);"
              "print(b''.join(iter(lambda:s.recv(4096),b'')))" % (name, request))
    return container.run(PYTHON, '-c', script, path).stdout.strip()


def test_the_reason_of_a_refusal_is_told_to_who_asks(pair):
    daemon, container, _ = pair
    vnl = b'vxvde:///colour=red\0'
    assert ask(container, daemon.socket, vnl) == repr(b'22\0')
    assert ask(container, daemon.socket, vnl + b'reason=1\0') == repr(
        b'22\0reason=vxvde:// has no option colour\0')
    for argv in ['-v'], ['-u'], ['-a', '10.0.0.1/24']:
        done = container.client('-s', daemon.socket, *(argv + ['vxvde:///colour=red']), check=False)
        assert done.stderr.splitlines()[-1] == (
            'vdelxcd: Invalid argument: vxvde:// has no option colour')
    text = failing(container, '-s', daemon.socket, '-u', 'vxvde:///if=none0')
    assert text == 'vdelxcd: No such device: no interface none0 on this host'


@pytest.mark.parametrize('vnl', [b'null://', b'vxvde:///if=lo'])
@pytest.mark.parametrize('name', [b'\xff\xfe\x01', b'\x1b[2J', b'$(id)', b'-rf', b"a'b\\,pid"])
def test_an_interface_may_have_any_name_that_the_kernel_takes(pair, vnl, name):
    daemon, container, _ = pair
    assert ask(container, daemon.socket, vnl + b'\0', name) == repr(b'0\0')
    wait_until(lambda: 'open interface: ' in daemon.log())
    listed = daemon.host.run(PYTHON, DAEMON, '--list').stdout
    assert listed.count('\n') == 2 and all(c == '\n' or ' ' <= c <= '~' for c in listed)
    assert 'error' not in daemon.log()


def test_a_wish_for_an_mtu_that_is_no_number_is_none(pair):
    daemon, container, _ = pair
    for number, mtu in enumerate((b'\xc2\xb2', b'\xd9\xa3', b'9' * 3000, b'-1', b'')):
        request = b'null://\0reason=1\0mtu=%s\0' % mtu
        assert ask(container, daemon.socket, request, b'x%d' % number).startswith("b'0\\x00"), mtu
    assert 'error' not in daemon.log()


def test_nothing_of_the_rules_or_the_host_is_told(host, new_container, new_daemon, tmp_path):
    rules = tmp_path / 'secret rules'
    rules.write_text('default vxvde:///if=secret0\ndeny null://secret\npfxallow null://\n'
                     'pfxallow vde://\npfxallow cmd://\n')
    daemon, container = new_daemon(host, '-v', '-f', rules), new_container()
    closed = tmp_path / 'closed'
    closed.mkdir()
    program = tmp_path / 'program'
    program.write_text('#!/bin/sh\necho secret: Permission denied >&2\nexit 1\n')
    program.chmod(0o755)
    for vnl, answer in (
            ('', b'19\0reason=\0'),             # the default network, which cannot be opened
            ('null://secret', b"13\0reason=refused by the rules; vdelxcd's log on the host names "
                              b"the rule\0"),
            ('tap://x0', b"13\0reason=refused by the rules; vdelxcd's log on the host names the "
                         b"rule\0"),
            ('vde://%s' % closed, b'2\0reason=\0'),
            ('cmd://%s' % program, b'13\0reason=the daemon may not open it\0')):
        assert ask(container, daemon.socket, vnl.encode() + b'\0reason=1\0') == repr(answer), vnl


def test_a_reason_is_printable_whatever_the_vnl(pair):
    daemon, container, _ = pair
    for vnl in b'\xff\xfe://', b'vxvde:///\x1b[2J', b'vxvde:///vni=' + b'\xc3\xa9' * 1500:
        text = ask(container, daemon.socket, vnl + b'\0reason=1\0')
        assert re.match(r"b'\d+\\x00reason=[ -~]*\\x00'$", text) and 'xff' not in text.lower()
        assert len(text) < 1300             # 600 characters, their backslashes doubled by repr()


def test_a_reason_comes_as_one_printable_line(new_container, closing, tmp_path):
    answer = b'22\0reason=\x1b[2J two\nlines \xff\0'
    listener = closing(Listener(str(tmp_path / 's'), [b'0\0reason=1\0', answer]))
    text = failing(new_container(), '-s', listener.path, '-u', 'null://')
    assert text == 'vdelxcd: Invalid argument: \\x1b[2J two\\nlines \ufffd'
    assert listener.requests == [b'\0hello=1\0', b'null://\0reason=1\0']


# ---- completion ---------------------------------------------------------------------------------

def complete(container, *words):
    """What bash offers for the last of these words."""
    require('bash')
    script = ('. /dev/stdin && COMP_WORDS=("$@") && COMP_CWORD=$(($# - 1)) && '
              '_vdelxcc 2> /dev/null; printf "%s\\n" "${COMPREPLY[@]}"')
    code = subprocess.check_output([PYTHON, CLIENT, '--completion', 'bash'])
    done = container.run('bash', '-c', script, 'bash', 'vdelxcc', *words, input=code.decode())
    return set(filter(None, done.stdout.split('\n')))


def test_bash_completes_options_schemes_and_interfaces(new_container):
    container = new_container()
    container.ip('tuntap add dev tap0 mode tap')
    container.ip('link add veth0 type veth peer name veth1')
    assert complete(container, '-D', '') == {'tap0'}
    assert complete(container, '--m') == {'--mac', '--mtu'}
    assert complete(container, '-u', 'vx') == {'vxvde://', 'vxlan://'}
    assert complete(container, '--mtu', '') == {'auto'}
    assert complete(container, '-a', '') == set()
    assert complete(container, '--completion', '') == {'bash'}


def test_bash_acts_on_no_name_of_an_interface_or_a_file(new_container, tmp_path, monkeypatch):
    container = new_container()
    monkeypatch.chdir(tmp_path)
    for name in '$(>hit)', '`>hit`', '*', 'a;b', '-rf', 'tap0', 'eth.7':
        container.ip('tuntap add dev %s mode tap' % name)
    assert complete(container, '-D', '') == {'tap0', 'eth.7'}
    assert complete(container, '--delete', 'e') == {'eth.7'}
    assert os.listdir(str(tmp_path)) == []
    (tmp_path / 'two words').mkdir()
    assert complete(container, '-s', 'two') == {'two words'}


@pytest.mark.parametrize('shell', ['zsh', ''])
def test_there_is_no_completion_for_another_shell(new_container, shell):
    done = new_container().client('--completion', shell, check=False)
    assert done.returncode == 1 and done.stderr.startswith('vdelxcc: --completion')


def test_the_errno_of_a_missing_interface_is_known():
    """if_nametoindex() raises an OSError without a number in some versions."""
    with pytest.raises(OSError) as caught:
        socket.if_nametoindex('none0')
    assert caught.value.errno in (None, errno.ENODEV, errno.ENXIO)
