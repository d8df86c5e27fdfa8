"""Command lines: options, their order and short forms, wrong usage, exit statuses."""

import os
import re
import socket
import subprocess

import pytest

from conftest import CLIENT, DAEMON, PYTHON


def run(script, *argv, **more):
    """Run a script to its end: (exit status, stdout, stderr)."""
    done = subprocess.run([PYTHON, script] + list(argv), stdin=subprocess.DEVNULL, timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          env=dict(os.environ, VDELXC_PATH='/nosuch'), **more)
    return done.returncode, done.stdout, done.stderr


# ---- both ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('how', ['file', 'stdin', 'isolated', 'elsewhere'])
@pytest.mark.parametrize('script', [CLIENT, DAEMON])
def test_a_module_beside_a_script_is_not_imported(tmp_path, script, how):
    """In /tmp, say, where others may have put it: root runs the script."""
    for name in 'errno', 'fcntl', 'os', 'select', 'signal', 'socket', 'struct', 'stat', 'syslog':
        (tmp_path / (name + '.py')).write_text('raise SystemExit("it was imported")')
    copy = tmp_path / os.path.basename(script)
    copy.write_bytes(open(script, 'rb').read())
    argv = {'file': [str(copy)], 'isolated': ['-I', str(copy)], 'elsewhere': [str(copy)],
            'stdin': ['-']}[how]
    with open(str(copy), 'rb') as text:
        said = subprocess.check_output(
            [PYTHON] + argv + ['--version'], stdin=text, stderr=subprocess.STDOUT, timeout=30,
            cwd='/' if how == 'elsewhere' else str(tmp_path))
    assert re.match(rb'vdelxc[cd] [\d.]+\n$', said)


# ---- the client ---------------------------------------------------------------------------------

@pytest.mark.parametrize('argv, expected', [
    ([], {'vnl': '', 'timeout': 10.0}),
    (['vxvde://'], {'vnl': 'vxvde://', 'timeout': 10.0}),
    (['-s', 'a', '-i', 'b', 'x'], {'socket': 'a', 'iface': 'b', 'vnl': 'x', 'timeout': 10.0}),
    (['-sa', '-ib', 'x'], {'socket': 'a', 'iface': 'b', 'vnl': 'x', 'timeout': 10.0}),
    (['x', '-s', 'a', '-v'], {'socket': 'a', 'verbose': '', 'vnl': 'x', 'timeout': 10.0}),
    (['--socket', 'a', '--iface=b'], {'socket': 'a', 'iface': 'b', 'vnl': '', 'timeout': 10.0}),
    (['--so=a', '--i', 'b', 'x'], {'socket': 'a', 'iface': 'b', 'vnl': 'x', 'timeout': 10.0}),
    (['-s', 'a', '-s', 'b', '--socket=c'], {'socket': 'a', 'vnl': '', 'timeout': 10.0}),
    (['-t', '2.5', '-t', '9'], {'vnl': '', 'timeout': 2.5}),
    (['-vt3', 'x'], {'verbose': '', 'vnl': 'x', 'timeout': 3.0}),
    (['--', '-s'], {'vnl': '-s', 'timeout': 10.0}),
    (['-i', '-s', 'x'], {'iface': '-s', 'vnl': 'x', 'timeout': 10.0}),
    (['-u', '--mtu', '68', '--mac=2:0:0:A:b:01'],
     {'up': '', 'mtu': '68', 'mac': b'\2\0\0\n\x0b\1', 'vnl': '', 'timeout': 10.0}),
    (['-a10.0.0.1/8', '-a', 'fd00::1/128', '-g', '10.0.0.2', '-gfe80::1'],
     {'address': [(socket.AF_INET, b'\n\0\0\1', 8, '10.0.0.1/8'),
                  (socket.AF_INET6, b'\xfd' + bytes(14) + b'\1', 128, 'fd00::1/128')],
      'gateway': [(socket.AF_INET, b'\n\0\0\2', '10.0.0.2'),
                  (socket.AF_INET6, b'\xfe\x80' + bytes(13) + b'\1', 'fe80::1')],
      'vnl': '', 'timeout': 10.0}),
    (['-vD', 'vde0'], {'verbose': '', 'delete': 'vde0', 'vnl': '', 'timeout': 10.0}),
])
def test_the_client_takes_options_and_arguments_in_any_order(vdelxcc, argv, expected):
    plain = set(expected) <= {'socket', 'iface', 'timeout', 'vnl'}
    defaults = {'socket': 'vdelxcs', 'iface': 'vde', 'address': [], 'gateway': [], 'plain': plain}
    assert vdelxcc.parse_arguments(argv) == dict(defaults, **expected)


@pytest.mark.parametrize('argv, word', [
    (['-v-'], '-v-'), (['-v--'], '-v--'), (['-v-u'], '-v-u'), (['-vx'], '-x'), (['-vs'], '-s'),
    (['a', 'b'], 'b'), (['-x'], '-x'), (['--nosuch'], 'nosuch'), (['-s'], '-s'),
    (['--socket'], 'socket'), (['--ver'], 'ver'), (['--verbose=1'], 'verbose'), (['-t', 'x'], 'x'),
    (['-t', '0'], '0'), (['-t', '-1'], '-1'), (['-t', 'nan'], 'nan'), (['-t', 'inf'], 'inf'),
    (['-t', ''], '-t'), (['-d'], '-d'),
    (['--mtu', '67'], '68'), (['--mtu', '65522'], '65521'), (['--mtu', '9' * 5000], '65521'),
    (['--mtu', '\u00b2'], '65521'), (['--mtu', '1279', '-a', 'fd00::1/64'], '1280'),
    (['-a', '10.0.0.1'], 'for example 10.0.0.1/24'), (['-a', 'fd00::1'], 'for example fd00::1/64'),
    (['-a', ''], 'not an IPv4'), (['-a', '10.0.0/24'], 'not an IPv4'),
    (['-a', '1.2.3.256/24'], 'not an'), (['-a', 'fd00::1::2/64'], 'not an'),
    (['-a', 'fe80::1%lo/64'], 'not an'), (['-a', 'x/24'], 'not an'),
    (['-a', '10.0.0.1/33'], '1 to 32'), (['-a', '10.0.0.1/0'], '1 to 32'),
    (['-a', '10.0.0.1/'], '1 to 32'), (['-a', '10.0.0.1/-1'], '1 to 32'),
    (['-a', '10.0.0.1/2 '], '1 to 32'), (['-a', 'fd00::1/129'], '1 to 128'),
    (['-a', '10.0.0.1/' + '9' * 5000], '1 to 32'), (['-a', '10.0.0.1/\u00b2'], '1 to 32'),
    (['-a', '10.0.0.1/255.255.255.0'], '1 to 32'), (['-a', '10.0.0.0/24'], 'whole network'),
    (['-a', '10.0.0.255/24'], 'whole network'), (['-a', '0.0.0.0/8'], 'no address of a host'),
    (['-a', '127.0.0.1/8'], 'no address'), (['-a', '224.0.0.1/8'], 'no address of a host'),
    (['-a', '255.255.255.255/32'], 'no address'), (['-a', '::/64'], 'no address of a host'),
    (['-a', '::1/128'], 'no address'), (['-a', 'ff02::1/64'], 'no address of a host'),
    (['-a', '10.0.0.1/24', '-a', '10.0.0.1/25'], 'twice'), (['-g', '10.0.0.1/24'], 'not an IPv4'),
    (['-g', '10.0.0.1', '-g', '10.0.0.2'], 'one for IPv4'), (['-g', '0.0.0.0'], 'no address'),
    (['-a', '10.0.0.1/24', '-g', '10.0.0.1'], 'itself'), (['-g', ''], 'not an IPv4'),
    (['--mac', '02:00:00:00:00'], 'auto:TEXT'), (['--mac', 'auto:'], 'auto:TEXT'),
    (['--mac', '02:00:00:00:00:00:01'], 'auto:TEXT'), (['--mac', '02:00:00:00:00:001'], 'auto'),
    (['--mac', '2:0:0:0:0:+1'], 'auto'), (['--mac', '2:0:0:0:0:\u0663'], 'auto'),
    (['--mac', '01:00:5e:00:00:01'], 'single'), (['--mac', '0:0:0:0:0:0'], 'single'),
    (['-D', 'vde0', 'vxvde://'], 'only -v'), (['-D', 'vde0', '-u'], 'only -v'),
    (['--completion', 'fish'], 'bash'), (['--completion', ''], 'bash'),
])
def test_a_command_line_of_the_client_that_makes_no_sense_is_told(vdelxcc, capsys, argv, word):
    assert vdelxcc.main(argv) == 1
    out, err = capsys.readouterr()
    fault, usage = err.splitlines()
    assert out == ''
    assert fault.startswith('vdelxcc: ') and word in fault
    assert usage == 'Usage: vdelxcc [OPTION]... [VNL]'


def test_the_hash_is_the_published_fnv1a(vdelxcc):
    """The vectors of draft-eastlake-fnv."""
    for data, value in ((b'', 0xcbf29ce484222325), (b'a', 0xaf63dc4c8601ec8c),
                        (b'foobar', 0x85944171f73967e8)):
        assert vdelxcc.fnv1a(data) == value


@pytest.mark.parametrize('text, mac', [
    ('foobar', '4271f739e27c'),             # 8594 4171f73967e8: 67e8 ^ 8594 = e27c, 41 -> 42
    ('a', 'de4c860143ef'),                  # af63 dc4c8601ec8c: ec8c ^ af63 = 43ef, dc -> de
    ('bb1', 'e219134110be'), (os.fsdecode(b'\xc3\xa9\xff'), None), ('x' * 5000, None),
])
def test_a_mac_address_of_a_text_is_stable_and_locally_administered(vdelxcc, text, mac):
    found = vdelxcc.read_mac('auto:' + text)
    assert len(found) == 6 and found[0] & 3 == 2
    assert mac in (None, found.hex())


def test_mac_addresses_of_similar_texts_differ(vdelxcc):
    texts = ['auto:c%d' % number for number in range(5000)]
    assert len({vdelxcc.read_mac(text) for text in texts}) == len(texts)


def test_the_client_refuses_a_vnl_of_more_than_4095_bytes(vdelxcc, capsys):
    for vnl in 'x' * 4096, os.fsdecode(b'\xc3\xa9') * 2048:
        assert vdelxcc.main([vnl]) == 1
        assert '4095' in capsys.readouterr().err


# ---- the daemon ---------------------------------------------------------------------------------

@pytest.mark.parametrize('argv, expected', [
    (['/s'], {}),
    (['/s', 'vxvde://'], {'vnl': 'vxvde://'}),
    (['-v', '/s', '-d', 'x'], {'verbose': '', 'daemon': '', 'vnl': 'x'}),
    (['-vd', '/s'], {'verbose': '', 'daemon': ''}),
    (['-f', '/a', '-f', '/b', '--rcfile=/c', '/s'], {'rcfile': '/c'}),
    (['-p', '/a', '-p', '/b', '--pidfile=/c', '/s'], {'pidfile': '/a'}),
    (['-m', '600', '--mode=0777', '/s'], {'mode': 0o600}),
    (['/s', '--mode=0777'], {'mode': 0o777}),
    (['/s', '--rc', '/a', '--pid=/b', '--mo', '0', '--verb', '--d'],
     {'rcfile': '/a', 'pidfile': '/b', 'mode': 0, 'verbose': '', 'daemon': ''}),
    (['-dp/x', '/s'], {'daemon': '', 'pidfile': '/x'}),
    (['--', '/s', '-v'], {'vnl': '-v'}),
    (['--user', 'x:y', '--max-s=3', '--max-p', '2', '/s'],
     {'user': 'x:y', 'max-sessions': 3, 'max-per-container': 2}),
    (['/s', '--ready-fd', '3', '--ready-fd=4'], {'ready-fd': 3}),
])
def test_the_daemon_takes_options_and_arguments_in_any_order(vdelxcd, argv, expected):
    options = vdelxcd.parse_arguments(argv)
    everywhere = {'socket': '/s', 'max-sessions': 2048, 'max-per-container': 256}
    assert {name: value for name, value in options.items() if value is not None} == dict(
        everywhere, **expected)


@pytest.mark.parametrize('argv, socket, vnl', [
    ([], None, None), (['/s'], '/s', None), (['x://'], None, 'x://'), (['/s', '/v'], '/s', '/v'),
    (['x://', 'y://'], 'x://', 'y://'), (['/a://b', '/v'], '/a://b', '/v'),
])
@pytest.mark.parametrize('more', [['--check-config'], ['--test', 'z://'], ['inherited']])
def test_where_no_socket_is_needed_one_argument_is_the_vnl_when_it_has_a_scheme(
        vdelxcd, argv, socket, vnl, more):
    inherited = more == ['inherited']
    options = vdelxcd.parse_arguments(argv if inherited else more + argv, inherited)
    if inherited and socket:
        socket = os.path.abspath(socket)
    assert (options['socket'], options['vnl']) == (socket, vnl)


def test_an_argument_too_many_is_told_whatever_is_asked(vdelxcd):
    for more in [], ['--check-config'], ['--test', 'z://']:
        with pytest.raises(vdelxcd.Usage):
            vdelxcd.parse_arguments(more + ['/s', 'x://', 'y://'], True)


def test_paths_of_the_daemon_are_fixed_before_it_detaches(vdelxcd):
    options = vdelxcd.parse_arguments(['-f', 'a/../b', '-p', './c', 's', 'x'])
    here = os.getcwd()
    assert (options['rcfile'], options['pidfile'], options['socket']) == (
        here + '/b', here + '/c', here + '/s')


@pytest.mark.parametrize('argv, word', [
    ([], 'socket'), (['-v'], 'socket'), (['/s', 'x', 'y'], 'y'), (['/s', '-x'], '-x'),
    (['/s', '--nosuch'], 'nosuch'), (['/s', '-f'], '-f'), (['/s', '--pidfile'], 'pidfile'),
    (['/s', '--ver'], 'ver'), (['/s', '-m', '8'], '8'), (['/s', '-m', ''], '-m'),
    (['/s', '-m', '1777'], '1777'), (['/s', '-m', '-1'], '-1'), (['/s', '-m', '0o600'], '0o600'),
    (['/s', '-m', 'rw'], 'rw'), (['/s', '-i', 'x'], '-i'), ([''], 'empty'),
    (['/s', '-f', ''], 'empty'), (['/s', '-p', ''], 'empty'), (['/s', '--ready-fd', 'x'], 'x'),
    (['/s', '--ready-fd', ''], '--ready-fd'), (['/s', '--ready-fd', '-1'], '-1'),
    (['/s', '--ready-fd', '1\u0662'], '1'), (['/s', '--ready-fd', '9' * 30], '999'),
    (['--completion', 'zsh'], 'zsh'), (['--completion', ''], 'bash'), (['--completion'], 'value'),
    (['--list', '--close', '7'], '--list'), (['--list', 'x'], 'x'), (['/s', '--json'], '--list'),
    (['--check-config', '--close', '7'], '--close'), (['--close', '7', '--test', ''], '--test'),
    (['-p', 'x', '--list'], '--pidfile:'), (['-v', '--list'], '--verbose:'),
    (['--capture', '7', '-w', 'x', '-d'], '--daemon'),
    (['--test'], '--test'), (['--check-config=x'], 'check-config'),
    (['--check-config', '-f', ''], 'empty'), (['--test', '', '-m', '8'], '8'),
])
def test_a_command_line_of_the_daemon_that_makes_no_sense_is_told(vdelxcd, argv, word):
    with pytest.raises(vdelxcd.Usage) as caught:
        vdelxcd.parse_arguments(argv)
    assert word in str(caught.value)


@pytest.mark.parametrize('text', ['\xb2', 'nobody:\xb2', '4294967295', 'nobody:9999999999',
                                  '9' * 5000, 'nobody:' + '9' * 5000])
def test_a_number_of_a_user_is_made_of_digits_and_small_enough(vdelxcd, text):
    with pytest.raises(vdelxcd.Failure):
        vdelxcd.find_user(text)


def test_the_inherited_socket_is_not_the_one_that_tells_of_readiness(vdelxcd):
    vdelxcd.parse_arguments(['--ready-fd', '4'], inherited=True)
    with pytest.raises(vdelxcd.Usage) as caught:
        vdelxcd.parse_arguments(['--ready-fd', '3'], inherited=True)
    assert '--ready-fd 3' in str(caught.value)


# ---- both, as programs --------------------------------------------------------------------------

@pytest.mark.parametrize('script, name, arguments', [
    (CLIENT, 'vdelxcc', '[VNL]'), (DAEMON, 'vdelxcd', 'SOCKET [VNL]')])
class TestBoth:
    """What both programs do alike."""

    @pytest.mark.parametrize('argv', [['-h'], ['--help'], ['--he'], ['-vh']])
    def test_help_goes_to_stdout(self, script, name, arguments, argv):
        status, out, err = run(script, *argv)
        assert (status, err) == (0, '')
        assert out.startswith('Usage: %s [OPTION]... %s\n' % (name, arguments))
        assert out.endswith('.\n') and not out.endswith('\n\n')
        assert max(len(line) for line in out.splitlines()) <= 100

    def test_version_is_a_line_with_the_name_and_a_number(self, script, name, arguments):
        status, out, err = run(script, '--version')
        assert (status, err) == (0, '')
        assert re.match(name + r' \d+\.\d+\.\d+\n$', out)

    @pytest.mark.parametrize('argv', [['a', 'b', 'c'], ['--nosuch'], ['-\n'], ['--\x1b[2J']])
    def test_wrong_usage_is_the_fault_then_the_usage_on_stderr(self, script, name, arguments, argv):
        status, out, err = run(script, *argv)
        assert (status, out) == (1, '')
        fault, usage = err.splitlines()
        assert fault.startswith(name + ': ') and fault.isprintable()
        assert usage == 'Usage: %s [OPTION]... %s' % (name, arguments)


@pytest.mark.parametrize('script', [CLIENT, DAEMON])
def test_a_program_that_is_started_in_a_deleted_directory_tells_no_traceback(script, tmp_path):
    code = 'cd "$1" && rmdir "$1" && exec "$2" "$3" relative'
    done = subprocess.run(['sh', '-c', code, 'sh', str(tmp_path), PYTHON, script], timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          env=dict(os.environ, VDELXC_PATH='/nosuch'))
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1)
    assert 'No such file or directory' in done.stderr


def test_the_client_without_a_daemon_is_one_line_and_exit_status_1():
    status, out, err = run(CLIENT, 'vxvde://')
    assert (status, out) == (1, '')
    assert re.match(r'connect: No such file or directory: tried /nosuch/vdelxcs: .*\n$', err)


def test_the_daemon_tells_every_fault_of_its_rules_and_makes_no_socket(tmp_path):
    rules, path = tmp_path / 'rules', str(tmp_path / 'sock')
    rules.write_text('permit x\n\nallow vxvde:///nosuch\n')
    for more in [], ['-d'], ['-p', str(tmp_path / 'pid')]:
        status, out, err = run(DAEMON, '-f', str(rules), path, *more)
        assert (status, out) == (1, '')
        assert [line.split(': ')[:2] for line in err.splitlines()] == [
            ['vdelxcd', '%s:1' % rules], ['vdelxcd', '%s:3' % rules]]
        assert os.listdir(str(tmp_path)) == ['rules']


@pytest.mark.parametrize('argv, reason', [
    (['-f', '/nosuch/rules', '{}/s'], 'vdelxcd: /nosuch/rules: No such file or directory'),
    (['{}/s', 'vxvde:///nosuch'], 'vdelxcd: vxvde:///nosuch: '),
    (['/nosuch/s'], 'vdelxcd: socket /nosuch/s: No such file or directory'),
    (['{}'], 'vdelxcd: socket {}: exists and is not a socket'),
    (['{}/' + 'a' * 107], 'vdelxcd: socket {}/aaa'),
    (['-p', '/nosuch/pid', '{}/s'], 'vdelxcd: pidfile /nosuch/pid: No such file or directory'),
    (['-d', '-p', '/nosuch/pid', '{}/s'], 'vdelxcd: pidfile /nosuch/pid: No such file or direc'),
])
def test_the_daemon_that_cannot_start_is_one_line_and_exit_status_1(tmp_path, argv, reason):
    status, out, err = run(DAEMON, *[each.replace('{}', str(tmp_path)) for each in argv])
    assert (status, out) == (1, '')
    assert err.startswith(reason.replace('{}', str(tmp_path))) and err.count('\n') == 1
    assert os.listdir(str(tmp_path)) == []
