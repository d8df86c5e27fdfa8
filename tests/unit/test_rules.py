"""The rules: which networks a container may have."""

import errno
import os
import random

import pytest


@pytest.fixture(scope='module')
def parse(vdelxcd):
    """parse(text) is the Vnl of a text."""
    return vdelxcd.read_vnl


@pytest.fixture
def read(vdelxcd, parse, tmp_path):
    """read(text of a rules file, or None; default) gives (Rules, warnings)."""
    def read(text, default=None):
        path = None
        if text is not None:
            path = str(tmp_path / 'rules')
            with open(path, 'wb') as file:
                file.write(text if isinstance(text, bytes) else text.encode())
        return vdelxcd.read_rules(path, default, parse)
    return read


@pytest.fixture
def judged(vdelxcd, parse, read):
    """judged(rules, VNLs) gives those of the VNLs that the rules allow."""
    def judged(rules, vnls, default=None):
        rules = read(rules, default)[0]
        return [vnl for vnl in vnls if is_allowed(vdelxcd, rules, parse(vnl))]
    return judged


def is_allowed(vdelxcd, rules, vnl):
    """Do the rules allow a Vnl? A refusal must be EACCES, or tell that nobody knows the scheme."""
    try:
        rules.judge(vnl)
        return True
    except vdelxcd.Failure as failure:
        assert failure.errno == errno.EACCES or (
            failure.errno == errno.EPROTONOSUPPORT
            and not {level.scheme for level in vnl.levels()} <= set(vdelxcd.PLUGS))
        return False


def faults(vdelxcd, read, text):
    """The lines that tell what is wrong with a rules file, its name left out."""
    with pytest.raises(vdelxcd.Failure) as caught:
        read(text)
    return [line[line.index('rules:'):] for line in str(caught.value).split('\n')]


# ---- models -------------------------------------------------------------------------------------

SOME = ['vxvde://', 'vxvde://239.1.2.3/port=5', 'tap://tap0', 'null://', 'cmd://ls', '/run/switch',
        'vlan://3{vxvde://}']


PROGRAMS = ['cmd://ls', 'nosuch://x', 'vlan://3{cmd://ls}', 'vlan://3{nosuch://}',
            'nosuch://{null://']


def test_without_file_and_default_everything_is_allowed_but_programs(vdelxcd, parse, judged):
    assert judged(None, SOME + PROGRAMS) == [vnl for vnl in SOME if vnl != 'cmd://ls']
    rules = vdelxcd.read_rules(None, None, parse, commands=True)[0]
    for vnl in SOME + PROGRAMS:
        assert is_allowed(vdelxcd, rules, parse(vnl))


def test_a_program_needs_a_rule_that_names_its_scheme(judged):
    assert judged('pfxallow\n', PROGRAMS) == []
    assert judged('pfxallow\npfxallow cmd://\n', PROGRAMS) == ['cmd://ls', 'vlan://3{cmd://ls}']
    assert judged('pfxallow vlan://3{\npfxallow cmd://ls\n', PROGRAMS) == [
        'cmd://ls', 'vlan://3{cmd://ls}']
    assert judged('pfxallow vlan://3{\npfxallow c\npfxallow cmd:\n', PROGRAMS) == []
    assert judged('allow cmd://ls\n', PROGRAMS + ['cmd://ls -l']) == ['cmd://ls']
    assert judged('default vlan://3{cmd://ls}\n', PROGRAMS) == ['vlan://3{cmd://ls}']
    assert judged('pfxallow vlan://\npfxallow nosuch://\n', PROGRAMS) == [
        'nosuch://x', 'vlan://3{nosuch://}']
    assert judged('pfxallow nosuch://\npfxdeny nosuch://x\npfxallow\n', PROGRAMS) == [
        'nosuch://x', 'vlan://3{nosuch://}', 'nosuch://{null://']


def test_with_a_default_only_nothing_else_is_allowed(judged):
    assert judged(None, SOME, default='vxvde://') == ['vxvde://']
    assert judged(None, SOME, default='vlan://3{vxvde://}') == ['vlan://3{vxvde://}']


def test_with_an_empty_file_nothing_is_allowed(judged):
    assert judged('', SOME) == []


def test_with_a_file_the_default_is_allowed_and_what_its_rules_say(judged):
    assert judged('allow tap://tap0\n', SOME, default='null://') == ['tap://tap0', 'null://']


def test_an_empty_request_gets_the_default_and_none_is_enoent(vdelxcd, read):
    default = read('default vxvde://239.1.1.1\n')[0].default
    assert default.text == 'vxvde://239.1.1.1'
    assert vdelxcd.choose_network('', read('default vxvde://239.1.1.1\n')[0]).text == default.text
    for rules in read(''), read(None):
        with pytest.raises(vdelxcd.Failure) as caught:
            vdelxcd.choose_network('', rules[0])
        assert caught.value.errno == errno.ENOENT


# ---- the three examples of the manual -----------------------------------------------------------

EXAMPLE = 'default vxvde://234.0.0.1\npfxallow vxvde://\nallow tap://tap0\n'


def test_the_first_example_of_the_manual(judged, read):
    assert read(EXAMPLE)[0].default.text == 'vxvde://234.0.0.1'
    good = ['vxvde://', 'vxvde://234.0.0.1', 'vxvde://ff05:56de::1/port=12345/vni=42', 'tap://tap0']
    assert judged(EXAMPLE, good + ['null://', 'tap://tap1']) == good


def test_the_second_example_of_the_manual(judged):
    nested = ['vlan://3{vxvde://224.0.0.2', 'agno://{vlan://4{vxvde://}}']
    assert judged(EXAMPLE, nested) == []
    more = EXAMPLE + 'pfxallow vlan://\npfxallow agno://\n'
    assert judged(more, nested + ['vlan://3{null://}', 'slirp://']) == nested


def test_the_third_example_of_the_manual(judged):
    denied = ['cmd://ls', 'vlan://3{cmd://ls}', 'nosuch://{vlan://3{nosuch://{cmd://ls',
              'vlan://3{' * 31 + 'cmd://x', "cmd:///bin/'sh' -c 'id'"]
    assert judged('pfxdeny cmd://\npfxallow\n', SOME + denied) == [
        vnl for vnl in SOME if vnl != 'cmd://ls']


# ---- which line decides -------------------------------------------------------------------------

def test_the_first_line_that_matches_decides(judged):
    both = ['vxvde://239.0.0.7', 'vxvde://239.0.0.8']
    assert judged('deny vxvde://239.0.0.7\npfxallow vxvde://\n', both) == both[1:]
    assert judged('pfxallow vxvde://\ndeny vxvde://239.0.0.7\n', both) == both
    assert judged('allow vxvde://239.0.0.7\npfxdeny vxvde://\n', both) == both[:1]
    assert judged('pfxdeny vxvde://239.0.0.7\nallow vxvde://239.0.0.7\n', both) == []


def test_a_prefix_is_text(judged):
    vnls = ['vxvde://239.0.0.1', 'vxvde://239.0.0.10', 'vxvde://239.0.0.2', 'tap://tap1']
    assert judged('pfxallow vxvde://239.0.0.1\n', vnls) == vnls[:2]
    assert judged('pfxdeny vxvde://239.0.0.1\npfxallow\n', vnls) == vnls[2:]


def test_the_default_of_the_command_line_comes_first_then_the_last_of_the_file(read):
    text = 'default vxvde://239.0.0.1\nallow null://\ndefault vxvde://239.0.0.2\n'
    assert read(text, 'vxvde://239.0.0.3')[0].default.text == 'vxvde://239.0.0.3'
    assert read(text)[0].default.text == 'vxvde://239.0.0.2'
    assert read('default vxvde://239.0.0.1\n')[0].default.text == 'vxvde://239.0.0.1'


def test_every_default_is_allowed_wherever_it_stands(judged):
    vnls = ['vxvde://239.0.0.%d' % number for number in (1, 2, 3, 4)]
    text = 'pfxdeny\ndefault vxvde://239.0.0.1\ndefault vxvde://239.0.0.2\n'
    assert judged(text, vnls, default='vxvde://239.0.0.3') == vnls[:3]


def test_the_reason_names_the_line(vdelxcd, read, parse):
    rules = read('deny tap://tap0\npfxallow tap://\n', 'null://')[0]
    assert rules.judge(parse('tap://tap1')).endswith('rules:2')
    assert rules.judge(parse('null://')).endswith('command line')
    for vnl, end in ('tap://tap0', 'rules:1'), ('vlan://3{tap://tap0}', 'rules:1'), (
            'vxvde://', 'no rule allows vxvde://'):
        with pytest.raises(vdelxcd.Failure) as caught:
            rules.judge(parse(vnl))
        assert str(caught.value).endswith(end)


# ---- the file -----------------------------------------------------------------------------------

def test_tags_are_case_insensitive_and_lines_may_be_indented(judged):
    text = 'ALLOW tap://a\n  Allow tap://b\n\tpfxAllow\ttap://c\nalloW  \t tap://d\n'
    assert judged(text, ['tap://a', 'tap://b', 'tap://cc', 'tap://d', 'tap://e']) == [
        'tap://a', 'tap://b', 'tap://cc', 'tap://d']


def test_carriage_returns_and_trailing_blanks_are_no_part_of_a_vnl(judged):
    text = 'allow tap://a \t\r\nallow tap://b\r\npfxallow tap://c  \r\nallow tap://d'
    assert judged(text, ['tap://a', 'tap://b', 'tap://cc', 'tap://d']) == [
        'tap://a', 'tap://b', 'tap://cc', 'tap://d']


def test_comments_and_empty_lines_say_nothing(judged):
    text = '# allow tap://a\n\n   \n\t# allow tap://b\n#allow tap://c\n\r\nallow tap://d#e\n'
    assert judged(text, ['tap://a', 'tap://b', 'tap://c', 'tap://d', 'tap://d#e']) == ['tap://d#e']


def test_a_vnl_of_a_rule_may_be_quoted(judged):
    assert judged("allow tap://'a'%62\n", ['tap://ab', 'tap://a']) == ['tap://ab']


def test_all_faults_of_a_file_are_told_at_once(vdelxcd, read):
    text = ('permit tap://a\nallow tap://ok\n allow vxvde:///nosuch=1\nallow\ndefault  \n'
            'deny 1://\npfxallow anything\nallow TAP://x\nallow tap://a\x00b\ndefault a\x00b\n')
    lines = faults(vdelxcd, read, text)
    assert [line.split(': ')[0] for line in lines] == [
        'rules:%d' % number for number in (1, 3, 4, 5, 8, 9, 10)]
    assert 'permit' in lines[0] and 'pfxdeny' in lines[0]
    assert 'nosuch' in lines[1]
    assert 'needs a VNL' in lines[2]


def test_a_file_of_arbitrary_bytes_gives_rules_or_a_failure(vdelxcd, read):
    random_ = random.Random(30)
    pieces = [b'allow', b'default', b'pfxdeny', b' ', b'\t', b'\n', b'\r', b'\0', b'\xff',
              b'\xc3\xa9', b'tap://a', b'vxvde://', b'{', b'/', b'%', b'#', b'\x0b', b'\x85',
              b'\xe2\x80\xa8', b'.']
    good = 0
    for _ in range(1000):
        text = b''.join(random_.choice(pieces) for _ in range(random_.randint(0, 12)))
        try:
            read(text)
            good += 1
        except vdelxcd.Failure as failure:
            assert all('rules:' in line for line in str(failure).split('\n')), text
    assert good > 50


def test_a_fault_of_the_default_on_the_command_line_is_a_failure(vdelxcd, read):
    with pytest.raises(vdelxcd.Failure) as caught:
        read(None, 'vxvde:///nosuch=1')
    assert 'nosuch' in str(caught.value)


@pytest.mark.parametrize('make, number', [
    (lambda path: None, errno.ENOENT),
    (lambda path: path.mkdir(), errno.EISDIR),
    (lambda path: path.symlink_to(path), errno.ELOOP),
])
def test_a_file_that_cannot_be_read_is_a_failure(vdelxcd, parse, tmp_path, make, number):
    path = tmp_path / 'rules'
    make(path)
    with pytest.raises(vdelxcd.Failure) as caught:
        vdelxcd.read_rules(str(path), None, parse)
    assert caught.value.errno == number
    assert str(path) in str(caught.value) and os.strerror(number) in str(caught.value)


def test_a_prefix_that_ends_inside_a_number_is_warned_of(read):
    text = ('pfxallow vxvde://239.0.0.1\npfxallow vxvde://\npfxdeny tap://tap2\nallow tap://tap3\n'
            'pfxallow vxvde://ff05::a\npfxallow vxvde://ff05::\npfxallow tap://a\npfxallow\n')
    warnings = read(text)[1]
    assert [warning.split(': ')[0].rsplit('/')[-1] for warning in warnings] == [
        'rules:1', 'rules:3', 'rules:5']
    assert warnings[0].endswith('vxvde://239.0.0.10')


# ---- denials ------------------------------------------------------------------------------------

SEVEN = [                               # one network in many words
    'vxvde://239.0.0.1/vni=7', 'vxvde:///vni=7', "vxvde:///'vni'=7", 'vxvde:///v=7',
    'vxvde:///vn=%37', 'vxvde://239.0.0.%31/vni=\\7', 'vxvde:///vni=007', 'vxvde:///ttl=9/vni=7',
    'vxvde:///vni=7/ttl=9', 'vxvde:///vni=7/rcvbuf=1m/hashsize=9/expiretime=3', 'vxvde:////vni=7/',
    'vxvde:///port=14789/vni=7', 'vxvde:///vni=7/port=14789', 'vxvde:///v4/vni=7',
    'vxvde:///vni=7/if=lo', 'vxvde:///vni=7/bind=192.0.2.1', "vxvde://'239.0.0.1'/vni=7",
]
GROUP = ['vxvde:///grp=258', 'vxvde://239.0.1.2/vni=258', 'vxvde://239.0.1.2/grp=258',
         'vxvde://239.0.9.9/grp=258', 'vxvde:///v4/g=258/ttl=3', 'vxvde:///vni=258/grp=258']
SIX = ['vxvde:///v6', 'vxvde://ff05:56de::1', 'vxvde://FF05:56DE:0::1/port=14789',
       'vxvde:///v6/ttl=3', 'vxvde:///ttl=3/v6', 'vxvde://ff05:56de::1/vni=1', 'vxvde:///vni=1/v6']
OTHERS = ['vxvde://', 'vxvde:///vni=8', 'vxvde:///vni=70', 'vxvde:///vni=7/port=5',
          'vxvde://239.0.0.2/vni=7', 'vxvde:///v6/vni=7', 'vxvde:///grp=7', 'tap://vni7']


@pytest.mark.parametrize('same', [SEVEN, GROUP, SIX])
def test_a_denial_cannot_be_talked_around(judged, same):
    for named in same:
        assert judged('deny %s\npfxallow\n' % named, same) == [], named
        nested = ['vlan://3{%s}' % vnl for vnl in same]
        assert judged('deny %s\npfxallow\n' % named, nested) == [], named


def test_a_denial_denies_no_other_network(judged):
    for named in SEVEN:
        assert judged('deny %s\npfxallow\n' % named, OTHERS) == OTHERS, named


def test_a_denial_of_a_nested_network_cannot_be_talked_around(judged):
    inside = [vnl for vnl in SEVEN if ' ' not in vnl]
    for outside in 'vlan://3', 'vlan://%33', "vlan://'3'":
        vnls = ['%s{%s}' % (outside, vnl) for vnl in inside]
        assert judged('deny vlan://3{vxvde:///vni=7}\npfxallow\n', vnls + inside) == inside
        assert judged('deny vlan://3{vxvde:///vni=7\npfxallow\n', vnls) == []
        deeper = ['vlan://9{%s}' % vnl for vnl in vnls]
        assert judged('deny vlan://3{vxvde:///vni=7}\npfxallow\n', deeper) == []
    assert judged('deny vlan://3{vxvde:///vni=7}\npfxallow\n', ['vlan://4{vxvde:///vni=7}',
                                                              'vlan://3{vlan://3{vxvde://}}',
                                                              'vlan://3{vxvde:///vni=8}']) != []


@pytest.mark.parametrize('prefix', [
    'vxvde:///vni=7', 'vxvde://239.0.0.1/vni=7', 'vxvde://239.0.0.1', 'vxvde://', 'vxvde:///vni='])
def test_a_denied_prefix_cannot_be_talked_around(judged, prefix):
    assert judged('pfxdeny %s\npfxallow\n' % prefix, SEVEN) == []
    nested = ['vlan://3{%s}' % vnl for vnl in SEVEN]
    assert judged('pfxdeny %s\npfxallow\n' % prefix, nested) == []
    assert judged('pfxdeny vlan://3{%s\npfxallow\n' % prefix, nested) == []
    assert judged('pfxdeny vlan://3{%s\npfxallow\n' % prefix, SEVEN) == SEVEN


@pytest.mark.parametrize('same', [SEVEN, GROUP, SIX])
def test_a_denied_prefix_denies_the_network_that_it_names_however_it_is_written(judged, same):
    nested = ['vlan://3{%s}' % vnl for vnl in same]
    for named in same:
        assert judged('pfxdeny %s\npfxallow\n' % named, same + nested) == [], named
        assert judged('pfxdeny vlan://%%33{%s\npfxallow\n' % named, same + nested) == same, named
        assert judged('pfxdeny vlan://3{%s}\npfxallow\n' % named, same + nested) == same, named


def test_a_denied_prefix_denies_no_network_that_neither_begins_like_it_nor_is_named_by_it(judged):
    others = [vnl for vnl in OTHERS if vnl not in ('vxvde:///vni=70', 'vxvde:///vni=7/port=5')]
    for named in SEVEN:
        assert judged('pfxdeny %s\npfxallow\n' % named, others) == others, named
    vnls = ['vxvde:///vni=7/port=5', 'vxvde:///port=5/vni=7', 'vxvde:///vni=7', 'vxvde:///port=5']
    assert judged('pfxdeny vxvde:///port=5/vni=7\npfxallow\n', vnls) == vnls[2:]
    assert judged('pfxdeny vxvde:///vni=7\npfxallow\n', vnls) == vnls[3:]
    assert judged('pfxdeny vxvde:///vni=7/port=14789\npfxallow\n', vnls) == [
        vnls[0], vnls[1], vnls[3]]


# ---- permissions --------------------------------------------------------------------------------

def test_a_permission_is_for_every_spelling_of_the_same_vnl(judged):
    same = ['vxvde:///vni=7/ttl=3', 'vxvde:///ttl=3/vni=7', 'vxvde://239.0.0.1/v=7/t=03',
            "vxvde:///'ttl'=3/vni=%37", 'vxvde:///vni=7/ttl=3/port=14789/v4']
    for named in same:
        assert judged('allow %s\n' % named, same) == same


@pytest.mark.parametrize('named, more', [
    ('vxvde:///vni=7', ['vxvde:///vni=7/ttl=3', 'vxvde:///vni=7/if=lo', 'vxvde:///vni=7/port=5',
                        'vxvde:///vni=7/bind=192.0.2.1', 'vxvde:///vni=7/rcvbuf=64m', 'vxvde://',
                        'vxvde:///vni=7/v6', 'vxvde:///vni=7/grp=9', 'vxvde:///vni=70',
                        'vxvde:///vni=7/expiretime=9', 'vlan://3{vxvde:///vni=7}']),
    ('tap://tap1', ['tap://tap10', 'tap://tap', 'vlan://3{tap://tap1}']),
    ('vlan://3{vxvde://}', ['vlan://3/trunk{vxvde://}', 'vlan://4{vxvde://}', 'vlan://3',
                            'vxvde://', 'vlan://3{vxvde:///ttl=9}', 'vlan://3{vlan://3{vxvde://}}',
                            'vlan://3{vlan://3}']),
])
@pytest.mark.parametrize('tag', ['allow', 'default'])
def test_a_permission_does_not_extend_to_other_options(judged, tag, named, more):
    assert judged('%s %s\n' % (tag, named), [named] + more) == [named]


def test_a_permitted_prefix_does_not_extend_to_another_group(judged):
    text = 'pfxallow vxvde://239.0.0.1/\n'
    good = ['vxvde://239.0.0.1/vni=5', 'vxvde://239.0.0.1/grp=1', 'vxvde://239.0.0.1/ttl=3/vni=2']
    moved = ['vxvde://239.0.0.1/grp=258', 'vxvde://239.0.0.1/vni=5/grp=2']
    assert judged(text, good + moved) == good
    assert judged('pfxallow vxvde://\n', ['vxvde://239.0.0.1/grp=258']) != []
    assert judged('pfxallow vxvde:///grp=\n', ['vxvde:///grp=258', 'vxvde:///grp=9/ttl=3']) == [
        'vxvde:///grp=258', 'vxvde:///grp=9/ttl=3']


def test_a_default_allows_itself_and_no_larger_network_made_of_it(judged):
    text = 'default vlan://3\npfxallow vxvde://\n'
    assert judged(text, ['vlan://3', 'vxvde://', 'vlan://3{vxvde://}']) == ['vlan://3', 'vxvde://']


# ---- nested -------------------------------------------------------------------------------------

def test_each_part_of_a_nested_vnl_must_be_allowed(judged):
    vnls = ['vlan://3{vxvde://}', 'vlan://3{tap://t}', 'vlan://4{vxvde://}',
            'vlan://3{vlan://4{vxvde://}}', 'vlan://3{vlan://3{vxvde://}}', 'vxvde://', 'vlan://3']
    assert judged('allow vlan://3\nallow vxvde://\n', vnls) == [vnls[0], vnls[4], 'vxvde://',
                                                               'vlan://3']
    assert judged('pfxallow vlan://\n', vnls) == ['vlan://3']
    assert judged('allow vxvde://\n', vnls) == ['vxvde://']


def test_a_nested_vnl_may_be_allowed_as_a_whole(judged):
    vnls = ['vlan://3{vxvde://}', 'vlan://3{vxvde:///vni=2}', 'vlan://3{tap://t}', 'vxvde://',
            'vlan://3']
    assert judged('allow vlan://3{vxvde://}\n', vnls) == vnls[:1]
    assert judged('pfxallow vlan://3{vxvde://\n', vnls) == vnls[:2]


def test_a_later_denial_of_a_part_does_not_undo_a_permission_of_the_whole(judged):
    vnls = ['vlan://3{vxvde://}']
    assert judged('allow vlan://3{vxvde://}\npfxdeny vxvde://\n', vnls) == vnls
    assert judged('pfxdeny vxvde://\nallow vlan://3{vxvde://}\n', vnls) == []


# ---- aliases ------------------------------------------------------------------------------------

def test_a_default_may_be_a_file_that_names_the_network(vdelxcd, read, judged, tmp_path):
    alias = tmp_path / 'net'
    alias.write_bytes(b'  vxvde://239.7.7.7 \r\nvxvde://239.8.8.8\n')
    assert read(None, str(alias))[0].default.text == 'vxvde://239.7.7.7'
    assert read('default %s\n' % alias)[0].default.text == 'vxvde://239.7.7.7'
    vnls = ['vxvde://239.7.7.7', 'vxvde://239.8.8.8', str(alias)]
    assert judged('default %s\n' % alias, vnls) == vnls[:1]


def test_an_alias_is_looked_for_where_the_daemon_was_started(vdelxcd, read, tmp_path, monkeypatch):
    (tmp_path / 'net').write_text('vxvde://239.7.7.7\n')
    monkeypatch.setattr(vdelxcd, 'START_DIRECTORY', str(tmp_path))
    monkeypatch.chdir('/')                  # as a detached daemon does
    assert read('default net\n')[0].default.text == 'vxvde://239.7.7.7'


def test_an_alias_is_followed_once(read, tmp_path):
    first, second = tmp_path / 'first', tmp_path / 'second'
    first.write_text(str(second) + '\n')
    second.write_text('vxvde://\n')
    default = read(None, str(first))[0].default
    assert (default.scheme, default.address) == ('vde', str(second))


def test_an_alias_that_holds_no_vnl_is_a_fault(vdelxcd, read, tmp_path):
    alias = tmp_path / 'net'
    alias.write_text('vxvde:///nosuch=1\n')
    assert [line.split(': ')[0] for line in faults(vdelxcd, read, '\ndefault %s\n' % alias)] == [
        'rules:2']


def test_an_alias_names_no_program(vdelxcd, read, parse, tmp_path):
    """Who can write where a default's path is would run what he likes, on the next SIGHUP."""
    alias = tmp_path / 'net'
    for text in 'cmd://id', 'vlan://3{cmd://id', 'slirp://', 'vlan://3{slirp://}':
        alias.write_text(text + '\n')
        lines = faults(vdelxcd, read, 'pfxallow cmd://\ndefault %s\n' % alias)
        assert len(lines) == 1 and lines[0].startswith('rules:2: ')
        with pytest.raises(vdelxcd.Failure) as caught:
            vdelxcd.read_rules(None, str(alias), parse, commands=True)
        assert str(alias) in str(caught.value) and 'program' in str(caught.value)
        assert read('default %s\n' % text)[0].default.text == parse(text).text


def test_an_alias_is_not_followed_for_a_request_or_another_rule(parse, judged, tmp_path):
    alias = tmp_path / 'net'
    alias.write_text('vxvde://\n')
    assert (parse(str(alias)).scheme, parse(str(alias)).address) == ('vde', str(alias))
    assert judged('allow vxvde://\n', [str(alias)]) == []
    assert judged('allow %s\n' % alias, ['vxvde://', str(alias)]) == [str(alias)]


def test_a_denial_covers_its_own_scheme_and_port_and_a_denied_prefix_the_switch(judged):
    vnls = ['vde:///run/sw', '/run/../run/sw', 'vde:///run/sw[3]', 'vde:///run/sw[mode=777/port=3]']
    assert judged('deny vde:///run/sw\npfxallow\n', vnls + ['hub:///run/sw']) == vnls[2:] + [
        'hub:///run/sw']
    assert judged('deny vde:///run/sw[3]\npfxallow\n', vnls) == vnls[:2]
    assert judged('pfxdeny vde:///run/sw\npfxallow\n', vnls) == []


def test_a_line_about_a_whole_decides_until_all_of_it_is_allowed(judged):
    nine, eight = 'vlan://9{null://}', 'vlan://8{null://}'
    assert judged('pfxallow vlan://\ndeny %s\npfxallow null://\n' % nine, [nine, eight]) == [eight]
    assert judged('pfxallow vlan://\npfxallow null://\ndeny %s\n' % nine, [nine]) == [nine]
    assert judged('pfxallow vlan://\nallow %s\n' % eight, [nine, eight]) == [eight]
    assert judged('pfxallow vlan://\npfxdeny vlan://9{\npfxallow\n', [nine, eight]) == [eight]
    # Only for the level itself the first line is the one that counts.
    assert judged('pfxallow vlan://9\npfxdeny vlan://\npfxallow null://\n', [nine, eight]) == [nine]


def test_a_group_of_ports_that_may_not_exist_is_the_switch_itself(judged):
    vnls = ['vde:///run/sw[blue]', 'vde:///run/sw[blue/mode=777]', 'vlan://3{vde:///run/sw[blue]}',
            'vde:///run/sw[3/portgroup=blue]', 'vde:///run/sw[green]', 'vde:///run/sw']
    for tag in 'deny', 'pfxdeny':
        assert judged(tag + ' vde:///run/sw[3]\npfxallow\n', vnls) == vnls[:3] + vnls[4:]
        assert judged(tag + ' vde:///run/sw[blue]\npfxallow\n', vnls[2:]) == (
            vnls[3:] if tag == 'deny' else vnls[4:])
    assert judged('deny vde:///run/sw\npfxallow\n', vnls) == [vnls[3]]
    assert judged('deny vlan://3{vde:///run/sw}\npfxallow\n', vnls) == vnls[:2] + vnls[3:]
    assert judged('allow vde:///run/sw\n', vnls) == [vnls[5]]


def test_a_denied_path_is_denied_by_every_link_to_it(judged, tmp_path):
    secret, link, open_ = tmp_path / 'secret', tmp_path / 'link', tmp_path / 'open'
    secret.mkdir(), open_.mkdir()
    link.symlink_to(secret)
    (open_ / 'up').symlink_to('..')
    for scheme in 'vde', 'hub', 'ptp':
        vnls = ['%s://%s' % (scheme, path) for path in (
            secret, link, open_ / 'up' / 'secret', open_ / 'up' / 'link')]
        nested = ['vlan://3{%s}' % vnl for vnl in vnls]
        for denied in vnls:
            for tag in 'deny', 'pfxdeny':
                assert judged('%s %s\npfxallow\n' % (tag, denied), vnls + nested) == [], denied
        assert judged('pfxdeny vlan://3{%s\npfxallow\n' % vnls[0], vnls + nested) == vnls
        other = '%s://%s' % (scheme, open_)
        assert judged('deny %s\npfxallow\n' % vnls[0], [other]) == [other]
    assert judged('pfxdeny vde://%s/\npfxallow\n' % tmp_path, ['vde://%s' % link]) == []
    link.unlink()
    link.symlink_to(open_)                  # what a link leads to is what counts
    assert judged('deny vde://%s\npfxallow\n' % secret, ['vde://%s' % link]) != []


def test_a_denied_switch_is_denied_as_the_default_switch_too(judged, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    vnls = ['vde://', 'vde://[mode=700]', 'vde://[blue]', 'vlan://3{vde://}']
    for path in '/var/run/vde.ctl', '/tmp/vde.ctl', str(tmp_path / '.vdeplug/default'):
        for tag in 'deny', 'pfxdeny':
            assert judged('%s vde://%s\npfxallow\n' % (tag, path), vnls) == [], path
        assert judged('deny vde://%s[5]\npfxallow\n' % path, vnls + ['vde://[5]']) == vnls
    assert judged('pfxdeny vde:///tmp/\npfxallow\n', vnls) == []
    assert judged('deny vde:///elsewhere\npfxallow\n', vnls) == vnls
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(os, 'getuid', lambda: 4000000001)       # who has no name
    assert judged('deny vde:///elsewhere\npfxallow\n', vnls) == vnls


def test_the_order_of_vlans_in_a_list_means_nothing(judged):
    vnls = ['vlan:///tag=10:20-30{null://}', 'vlan:///tag=20-30.10-010{null://}']
    for named in vnls:
        assert judged('deny %s\npfxallow\n' % named, vnls) == []
        assert judged('allow %s\n' % named, vnls) == vnls


def test_the_other_name_of_a_denied_cable_is_denied(judged):
    """Who is first at PATH+ would hear what the first at PATH sends."""
    vnls = ['ptp:///run/cable', 'ptp:///run/cable+', 'vlan://3{ptp:///run/x/../cable%2b[mode=777]}']
    for tag in 'deny', 'pfxdeny':
        assert judged(tag + ' ptp:///run/cable\npfxallow\n', vnls) == []
    assert judged('deny ptp:///run/cabl\npfxallow\n', vnls) == vnls
    assert judged('allow ptp:///run/cable\n', vnls) == vnls[:1]


def test_a_link_at_the_other_name_of_a_cable_leads_to_no_denied_one(judged, tmp_path):
    """Who is first at PATH sends to PATH+, wherever that leads."""
    for name in 'a+', 'b+', 'b++':
        (tmp_path / name).symlink_to('/run/secret/cable')
    vnls = ['ptp://%s/%s' % (tmp_path, name) for name in ('a', 'a+', 'b', 'b+', 'c')]
    for tag in 'deny', 'pfxdeny':
        assert judged(tag + ' ptp:///run/secret/cable\npfxallow\n', vnls) == vnls[4:]
    assert judged('allow %s\n' % vnls[0], vnls) == vnls[:1]


@pytest.mark.parametrize('scheme', ['vde', 'hub', 'switch', 'ptp'])
def test_no_path_leads_through_the_files_of_a_container(vdelxcd, parse, scheme):
    """There the container makes the links, and what they mean on this host nobody can see."""
    for path in ('/proc/1/root/x', '//proc/self/cwd/x', '/x/../proc/1/root/x', '/%70roc/1/root',
                 "/'proc'/./thread-self/root/run/sw[mode=700]"):
        with pytest.raises(vdelxcd.Failure) as caught:
            parse('vlan://3{%s://%s}' % (scheme, path))
        assert caught.value.errno == errno.EINVAL and '/proc/' in str(caught.value)
    assert parse('%s:///process/x' % scheme).address == '/process/x'


def test_a_prefix_may_be_a_path(judged):
    vnls = ['/run/sw', 'vde:///run/sw[3]', 'vlan://3{/run/sw}', '/tmp/sw', 'hub:///run/sw']
    assert judged('pfxdeny /run/\npfxallow\n', vnls) == vnls[3:]
    assert judged('pfxallow /run/\n', vnls) == vnls[:2]


def test_a_prefix_with_which_no_vnl_begins_is_a_fault(vdelxcd, read, tmp_path):
    wrong = ['TAP://', 'tap//:', 'tap:tap0', 'tap:/x', './sw', 'run/sw', 'tap ://', '*', "'tap'://",
             'tap://\rpfxallow', 'tap://\x1b']
    for tag in 'pfxdeny', 'pfxallow':
        text = ''.join('%s %s\n' % (tag, prefix) for prefix in wrong)
        assert [line.split(':')[1] for line in faults(vdelxcd, read, text)] == [
            str(number) for number in range(1, len(wrong) + 1)]
    assert faults(vdelxcd, read, b'pfxdeny vde:///\xff\n') == [
        'rules:1: no VNL begins with vde:///\\udcff']
    good = ['', 't', 'tap', 'tap:', 'tap:/', 'tap://', 'vlan://3{TAP', 'x-1_y', 'vxvde://#', '/']
    read(''.join('pfxdeny %s\n' % prefix for prefix in good))
