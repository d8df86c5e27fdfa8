"""--check-config and --test: what a start would find, and what a client would get."""

import os
import re
import socket

import pytest


@pytest.fixture
def examine(vdelxcd, tmp_path, monkeypatch, capsys):
    """examine(text of the rules or None, arguments) gives (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(('LISTEN_', 'NOTIFY_'))]:
        monkeypatch.delenv(name)

    def examine(rules, *argv):
        before = sorted(os.listdir('/proc/self/fd'))
        more = []
        if rules is not None:
            (tmp_path / 'rules.conf').write_text(rules)
            more = ['-f', 'rules.conf']
        names = os.listdir(str(tmp_path))
        with monkeypatch.context() as patch:
            for part in 'open_listener', 'open_plug', 'write_pidfile', 'Server', 'detach':
                patch.setattr(vdelxcd, part, None)      # nothing is opened: none of these
            patch.setattr(socket.socket, 'connect', None)
            status = vdelxcd.main(more + list(argv))
        assert os.listdir(str(tmp_path)) == names
        assert sorted(os.listdir('/proc/self/fd')) == before
        return (status,) + tuple(capsys.readouterr())
    return examine


# ---- --check-config -----------------------------------------------------------------------------

RULES = ('# seven lines that say something\n'
         'default vxvde://234.0.0.1\ndefault null://\nallow tap://tap0\n\npfxallow vlan://\n'
         'pfxallow vxvde://239\nDENY cmd://ls\npfxallow\n')
WARNING = ('warning: rules.conf:7: the prefix ends inside a number: it also matches '
           'vxvde://2390\n')


@pytest.mark.parametrize('rules, argv, out, err', [
    (RULES, [], 'rules.conf: 7 rules, 1 warning', WARNING),
    (RULES, ['/run/s', '-d', '-p', '/nosuch/pid'], 'rules.conf: 7 rules, 1 warning', WARNING),
    (RULES, ['vxvde://'], 'rules.conf: 7 rules, 1 warning', WARNING),
    ('allow null://', [], 'rules.conf: 1 rule', ''),
    ('', [], 'rules.conf: 0 rules', ''),
    (None, ['vxvde:///port=1'], 'command line: one network: vxvde:///port=1', ''),
    (None, ['/s', '/run/switch'], 'command line: one network: vde:///run/switch', ''),
    (None, [], 'command line: no rules: everything that runs no program is allowed', ''),
    (None, ['/s', '--allow-commands'], 'command line: no rules: everything is allowed', ''),
])
def test_good_rules_are_one_line(examine, rules, argv, out, err):
    assert examine(rules, '--check-config', *argv) == (0, out + '\n', err)


def test_every_fault_and_every_warning_is_told(examine):
    rules = 'permit x\nallow\npfxdeny tap://1\nallow vxvde:///nosuch\ndefault udp://x\n'
    status, out, err = examine(rules, '--check-config', 'vxvde:///bad')
    lines = err.splitlines()
    assert (status, out) == (1, '')
    assert [line.split(': ')[0] for line in lines] == [
        'warning', 'vxvde:///bad', 'rules.conf:1', 'rules.conf:2', 'rules.conf:4', 'rules.conf:5']
    assert all(re.match(r'rules.conf:\d: \S', line) for line in lines[2:])
    assert 'no option bad' in lines[1] and 'no option nosuch' in lines[4]


def test_hundreds_of_faults_are_all_told(examine):
    _, _, err = examine('nonsense\n' * 3000, '--check-config')
    assert err.count('\n') == 3000


def test_rules_that_cannot_be_read_are_a_fault(examine):
    status, out, err = examine(None, '--check-config', '-f', 'nosuch.conf', 'vxvde:///bad')
    assert (status, out) == (1, '')
    assert err.splitlines()[1] == 'nosuch.conf: No such file or directory'


def test_a_name_that_cannot_be_printed_is_escaped(examine, tmp_path):
    (tmp_path / 'a\nb').write_text('allow null://\nx')
    status, out, err = examine(None, '--check-config', '-f', 'a\nb')
    assert (status, out) == (1, '') and err.startswith('a\\nb:2: x: ')


# ---- --test -------------------------------------------------------------------------------------

VXVDE = 'port=14789/vni=1/ttl=1/hashsize=1024/expiretime=128'
SOME = ('default vxvde://234.0.0.1\ndeny vxvde://239.0.0.7\npfxallow vxvde://\nallow tap://tap0\n'
        'allow vlan://8{null://}\npfxallow vlan://\npfxallow agno://\n')


@pytest.mark.parametrize('vnl, lines', [
    ('vxvde://', ['vxvde://: allowed by pfxallow vxvde://, rules.conf:3',
                  '    opens vxvde://239.0.0.1/' + VXVDE]),
    ('vxvde:///p=5', ['vxvde:///port=5: allowed by pfxallow vxvde://, rules.conf:3',
                      '    opens vxvde://239.0.0.1/' + VXVDE.replace('14789', '5')]),
    ('', ['vxvde://234.0.0.1: allowed by default vxvde://234.0.0.1, rules.conf:1',
          '    opens vxvde://234.0.0.1/' + VXVDE]),
    ('tap://%74ap0', ['tap://tap0: allowed by allow tap://tap0, rules.conf:4',
                      '    opens tap://tap0']),
    ('vlan://3{vxvde://', ['vlan://3: allowed by pfxallow vlan://, rules.conf:6',
                           '    opens vlan://3',
                           'vxvde://: allowed by pfxallow vxvde://, rules.conf:3',
                           '    opens vxvde://239.0.0.1/' + VXVDE]),
    ('vlan://8{null://}', ['vlan://8: allowed by allow vlan://8{null://}, rules.conf:5',
                           '    opens vlan://8',
                           'null://: allowed by allow vlan://8{null://}, rules.conf:5',
                           '    opens null://']),
    ('agno://{vxvde://}', ['agno://: allowed by pfxallow agno://, rules.conf:7',
                           '    runs vde_plug agno://{vxvde://}',
                           'vxvde://: allowed by pfxallow vxvde://, rules.conf:3']),
])
def test_what_is_allowed_is_told_level_by_level(examine, vnl, lines):
    assert examine(SOME, '--test', vnl) == (0, '\n'.join(lines) + '\n', '')


@pytest.mark.parametrize('vnl, lines', [
    ('vxvde://239.0.0.7/ttl=3',
     ['vxvde://239.0.0.7/ttl=3: refused by deny vxvde://239.0.0.7, rules.conf:2']),
    ('tap://tap1', ['tap://tap1: refused: no rule allows tap://tap1']),
    ('/run/sw[3]', ['vde:///run/sw[port=3]: refused: no rule allows vde:///run/sw[port=3]']),
    ('cmd://ls', ['cmd://ls: refused: cmd:// runs a program on this host; it needs a rule that '
                  'names it, such as "pfxallow cmd://"']),
    ('vlan://3{tap://tap1}', ['vlan://3: allowed by pfxallow vlan://, rules.conf:6',
                              'tap://tap1: refused: no rule allows tap://tap1']),
    ('vlan://3{vxvde://239.0.0.7}', [
        'vxvde://239.0.0.7: refused by deny vxvde://239.0.0.7, rules.conf:2']),
    ('other://{vlan://3{tap://tap1}}', [
        'other://: refused: other:// runs a program on this host; it needs a rule that names it, '
        'such as "pfxallow other://"',
        'vlan://3: allowed by pfxallow vlan://, rules.conf:6',
        'tap://tap1: refused: no rule allows tap://tap1']),
])
def test_what_is_refused_is_told_with_the_line_that_did_it(examine, vnl, lines):
    assert examine(SOME, '--test', vnl) == (1, '\n'.join(lines) + '\n', '')


def test_a_denial_of_a_whole_refuses_each_level_that_nothing_had_allowed(examine):
    rules = 'deny vlan://9{null://}\npfxallow\n'
    by = 'refused by deny vlan://9{null://}, rules.conf:1\n'
    assert examine(rules, '--test', 'vlan://9{null://}') == (
        1, 'vlan://9: %snull://: %s' % (by, by), '')
    assert examine('allow null://\n' + rules, '--test', 'vlan://9{null://}')[1] == (
        'vlan://9: %snull://: allowed by allow null://, rules.conf:1\n' % by.replace(':1', ':2'))


def test_without_a_file_the_command_line_decides(examine):
    assert examine(None, '--test', 'null://') == (
        0, 'null://: allowed: there are no rules\n    opens null://\n', '')
    assert examine(None, '--test', 'null://', 'null://') == (
        0, 'null://: allowed by default null://, command line\n    opens null://\n', '')
    assert examine(None, '--test', 'tap://x', '/run/s', 'null://')[:2] == (
        1, 'tap://x: refused: no rule allows tap://x\n')
    assert examine(SOME, '--test', '', 'null://5')[1].startswith(
        'null://5: allowed by default null://5, command line\n')
    status, out, _ = examine(None, '--test', 'cmd://ls')
    assert status == 1 and '--allow-commands' in out and out.count('\n') == 1
    assert examine(None, '--allow-commands', '--test', 'cmd://ls')[0] == 0


@pytest.mark.parametrize('rules, vnl, words', [
    (SOME, 'vxvde:///nosuch=1', 'vxvde:///nosuch=1: vxvde:// has no option nosuch'),
    (SOME, 'a b://', 'a b://: a b: not a scheme'),
    (SOME, 'tap://a\nb', 'tap://a\\nb: characters'),
    (SOME, 'vlan://3{tap://}', 'vlan://3{tap://}: '),
    (SOME, 'null://' + 'x' * 4089, 'the VNL is longer than 4095 bytes'),
    ('allow null://', '', 'the default network: no VNL, and there is no default'),
    (None, '', 'the default network: no VNL, and there is no default'),
], ids=['option', 'scheme', 'newline', 'nested', 'long', 'no default', 'no rules'])
def test_what_is_no_vnl_is_one_line(examine, rules, vnl, words):
    status, out, err = examine(rules, '--test', vnl)
    assert (status, out, err.count('\n')) == (1, '', 1)
    assert err.startswith('vdelxcd: ' + words)


def test_faults_of_the_rules_come_before_any_answer(examine):
    assert examine('allow\n', '--test', 'null://')[:2] == (1, '')


def test_both_may_be_asked_at_once(examine):
    status, out, _ = examine('allow null://\n', '--check-config', '--test', 'null://')
    assert (status, out.split('\n')[:2]) == (
        0, ['rules.conf: 1 rule', 'null://: allowed by allow null://, rules.conf:1'])


@pytest.mark.parametrize('vnl', [
    'vxvde://', 'vxvde:///v6', 'vxvde://ff05::1/if=lo/rcvbuf=4M', 'vxvde:///vni=7/port=9/ttl=2',
    'vxlan://239.1.1.1/vni=5', 'udp://5->127.0.0.1:6', 'tap://a', 'macvtap://m', 'null://',
    'ptp:///a', 'hub:///a', 'switch://', 'switch:///a[mode=600]', 'multi:///m', 'bonding://',
    'seqpacket://5', 'vde:///run/x[port=3]', 'vlan://3{null://}', 'vlan://3/t=4/x{null://}',
    'cmd://ls "a b"',
])
def test_what_is_opened_is_the_same_network_with_the_defaults_written_out(vdelxcd, vnl):
    level = vdelxcd.read_vnl(vnl)
    text = vdelxcd.written_out(level, vdelxcd.PLUGS[level.scheme])
    again = vdelxcd.read_vnl(text + '{null://}' * bool(level.nested))
    assert (again.exact, again.network) == (level.exact, level.network)
