"""Rules cannot be talked around: networks in random spellings, against permissions and denials.

A respelling is made so that it names the same network; what is only similar is opened in mind, by
an opinion of its own on what each scheme would connect to.
"""

import errno
import os
import re
import socket

import pytest

from fuzzing import fuzz                                                        # noqa: F401
from test_fuzz_texts import some_vnl, spoilt

SPECIAL = '\\\'"%[]{}/= '


def quoted(chance, text, plain=''):
    """The text in another spelling of the same; what is in plain stays as it is."""
    out = []
    for char in text:
        way = chance.randrange(8)
        if char in plain:
            out.append(char)
        elif way == 0:
            out.append(''.join(chance.choice(['%%%02x', '%%%02X']) % byte
                               for byte in os.fsencode(char)))
        elif way == 1 or char in SPECIAL:
            out.append(chance.choice(['\\%s', "'%s'", '"%s"'] if char.isalnum() else ['\\%s'])
                       % char)
        elif way == 2:
            out.append(chance.choice(["''", '""']) + char)
        else:
            out.append(char)
    return ''.join(out)


def number(chance, value):
    """A number with or without zeros in front of it."""
    return chance.choice(['', '', '0', '000']) + str(value)


def path(chance, text):
    """Another way to a path."""
    out = ''
    for part in text.split('/')[1:]:
        out += chance.choice(['/', '/', '//', '/./', '/x/../', '/.//', '/x/y/../../']) + part
    return out + chance.choice(['', '', '/', '/.', '/x/..'])


def fields(chance, style, pairs):
    """Options in any order, their names cut where that is allowed: (name, shortest name, value)."""
    chance.shuffle(pairs)
    texts = [quoted(chance, name[:chance.randint(min(least, len(name)), len(name))])
             + ('' if value is None else '=' + quoted(chance, value))
             for name, least, value in pairs]
    return ''.join('/' + text for text in texts) if style == '/' else '[%s]' % '/'.join(texts)


def other_options(chance):
    """Options of vxvde:// that do not name the network."""
    return chance.sample([('ttl', 1, number(chance, chance.randint(1, 255))), ('rcvbuf', 1, '1m'),
                          ('hashsize', 1, '9'), ('expiretime', 1, '3'), ('if', 1, 'lo')],
                         chance.randrange(4))


def same_overlay(chance):
    """vxvde://239.0.1.2/vni=7 in other words."""
    group = chance.choice(['239.0.1.2', 'grp'])
    pairs = other_options(chance) + [('vni', 1, number(chance, 7))]
    if group == 'grp':                      # 0x000102 are the last three bytes of the group
        group = chance.choice(['', '239.0.0.1', '239.9.9.9'])
        pairs.append(('grp', 1, number(chance, 0x000102)))
    if chance.random() < 0.3:
        pairs.append(('port', 1, number(chance, 14789)))
    if chance.random() < 0.3:
        pairs.append(('v4', 2, None))
    return 'vxvde://' + quoted(chance, group) + fields(chance, '/', pairs)


def same_six(chance):
    """vxvde:///v6/port=5 in other words."""
    group = chance.choice(['', 'ff05:56de::1', 'FF05:56dE:0::0001', 'ff05:56de:0:0:0:0:0.0.0.1'])
    pairs = other_options(chance) + [('port', 1, number(chance, 5))]
    if not group or chance.random() < 0.3:
        pairs.append(('v6', 2, None))
    if chance.random() < 0.3:
        pairs.append(('vni', 1, number(chance, 1)))
    return 'vxvde://' + quoted(chance, group) + fields(chance, '/', pairs)


def same_tap(chance):
    return 'tap://' + quoted(chance, 'tap7')


def same_switch(chance):
    """vde:///run/secret[3] in other words."""
    port = chance.choice([('port', 1, number(chance, 3)), (number(chance, 3), 99, None)])
    pairs = [port] + chance.sample([('mode', 1, '0777'), ('group', 1, '5')], chance.randrange(3))
    scheme = chance.choice(['vde://', 'vde://', ''])
    # Without a scheme :// must not appear.
    return scheme + quoted(chance, path(chance, '/run/secret').replace('://', ':/')) + fields(
        chance, '[', pairs)


def same_hub(chance):
    pairs = chance.sample([('mode', 1, '777'), ('hashsize', 5, '7')], chance.randrange(3))
    return 'hub://' + quoted(chance, path(chance, '/run/secret')) + (
        fields(chance, '[', pairs) if pairs else '')


def same_program(chance):
    """cmd://sh -c 'id' in other words."""
    word = chance.choice(["'id'", '"id"', 'id', '\\i\\d', "i''d", 'i"d"'])
    return 'cmd://' + ' ' * chance.randrange(3) + chance.choice(['sh', "'sh'", 's\\h']) + ' ' * (
        chance.randint(1, 3)) + '-c ' + word + ' ' * chance.randrange(2)


SAME = {
    'vxvde://239.0.1.2/vni=7': same_overlay, 'vxvde:///v6/port=5': same_six,
    'tap://tap7': same_tap, 'vde:///run/secret[3]': same_switch, 'hub:///run/secret': same_hub,
    "cmd://sh -c id": same_program}


def hidden(chance, text):
    """The VNL inside of others, or alone."""
    for _ in range(chance.choice([0, 0, 1, 2, 7])):
        end = chance.choice(['}', '}', ''])
        text = chance.choice(['vlan://3{', 'vlan://%34/x{', 'vlan://[t=5:6-7]{', "vlan://'9'/q{",
                              'agno://{', 'agno:///etc/key{']) + text + end
    return text


def allowed(vdelxcd, rules, text):
    """The Vnl that a client with this text gets, or None."""
    try:
        return vdelxcd.choose_network(text, rules)
    except vdelxcd.Failure as failure:
        assert failure.errno in (errno.EACCES, errno.EINVAL, errno.EPROTONOSUPPORT) or not text
        return None


def read(vdelxcd, tmp_path, text):
    (tmp_path / 'rules').write_text(text)
    return vdelxcd.read_rules(str(tmp_path / 'rules'), None, vdelxcd.read_vnl)[0]


EVERYTHING = 'pfxallow\npfxallow cmd://\npfxallow agno://\npfxallow slirp://\n'


@pytest.mark.parametrize('named', sorted(SAME))
@pytest.mark.parametrize('tag', ['deny', 'pfxdeny'])
def test_a_denied_network_is_refused_however_it_is_written(vdelxcd, fuzz, tmp_path, tag, named):
    chance, spellings = fuzz.chance, set()
    place = destination(vdelxcd.read_vnl(named).head)
    rules = read(vdelxcd, tmp_path, '%s %s\n%s' % (tag, named, EVERYTHING))
    assert allowed(vdelxcd, rules, 'vxvde://239.9.9.9') and allowed(vdelxcd, rules, 'cmd://date')
    for _ in fuzz.rounds(150):
        text = SAME[named](chance)
        spellings.add(text)
        # It does name that network, and is well-formed: refused for what it is.
        assert vdelxcd.read_vnl(text).network == vdelxcd.read_vnl(named).network, text
        text = hidden(chance, text)
        with pytest.raises(vdelxcd.Failure) as caught:
            vdelxcd.choose_network(text, rules)
        assert caught.value.errno == errno.EACCES, text
        odd = spoilt(fuzz, text)
        vnl = allowed(vdelxcd, rules, odd)
        if vnl:
            assert place not in [destination(level.head) for level in vnl.levels()], odd
    assert len(spellings) > 20


def destination(text):
    """What a canonical VNL of one level connects to, as a plug would understand it."""
    scheme, _, rest = text.partition('://')
    rest = re.sub(r'\\(.)', lambda match: '%%%02x' % ord(match.group(1)), rest)
    if scheme in ('vxvde', 'vxlan'):
        address, *options = rest.split('/')
        options = dict((option + '=').split('=')[:2] for option in options)
        family = socket.AF_INET6 if 'v6' in options or ':' in address else socket.AF_INET
        binary = socket.inet_pton(family, address or {
            socket.AF_INET: '239.0.0.1', socket.AF_INET6: 'ff05:56de::1'}[family])
        vni = options.get('vni', '1')
        if 'grp' in options:
            last = int(options['grp']) & 0xffffff
            binary, vni = binary[:-3] + last.to_bytes(3, 'big'), options.get('vni', str(last))
        return scheme, binary, options.get('port', '14789' if scheme == 'vxvde' else '4789'), vni
    if scheme in ('vde', 'hub'):
        place, _, options = rest.partition('[')
        port = re.search(r'port=(\d+)', options)
        return scheme, os.path.normpath('/' + place), port and int(port.group(1))
    return scheme, rest


# ---- permissions --------------------------------------------------------------------------------

def test_whatever_is_accepted_consists_of_levels_that_the_rules_name(vdelxcd, fuzz, tmp_path):
    chance, accepted = fuzz.chance, 0
    heads = ['vxvde://239.1.2.3', 'vxvde://', 'vxvde:///vni=7', 'vlan://3', 'vlan://', 'tap://tap0',
             'vde:///run/sw', 'vde:///run/', 'hub:///tmp/', 'cmd://ls', 'cmd://', 'agno://',
             'null://', 'udp://5->', 'slirp://']
    for _ in fuzz.rounds(60):
        prefixes = chance.sample(heads, 4)
        exact = [vdelxcd.read_vnl(text) for text in chance.sample(heads, 2)
                 if text[-1] != '>' and text != 'cmd://']
        rules = read(vdelxcd, tmp_path, ''.join(
            ['pfxallow %s\n' % prefix for prefix in prefixes]
            + ['allow %s\n' % vnl.text for vnl in exact]))
        for _ in range(30):
            text = hidden(chance, chance.choice([some_vnl(vdelxcd, chance), chance.choice(heads)]))
            text = spoilt(fuzz, text) if chance.random() < 0.4 else text
            vnl = allowed(vdelxcd, rules, text)
            if vnl is None:
                continue
            accepted += 1
            for level in vdelxcd.read_vnl(vnl.text).levels():       # that is what is opened
                assert level.exact in [each.exact for each in exact] or any(
                    level.head.startswith(prefix) for prefix in prefixes), text
    assert accepted > 50


@pytest.mark.parametrize('text', [
    'pfxallow vlan://\npfxallow vxvde://\npfxallow null://\npfxallow vde://\npfxallow\n',
    'pfxdeny cmd://\n' + EVERYTHING, 'allow cmd://ls\npfxallow\n', None])
def test_a_program_is_found_at_any_depth(vdelxcd, fuzz, tmp_path, text):
    chance, programs, harmless = fuzz.chance, 0, 0
    rules = read(vdelxcd, tmp_path, text) if text else vdelxcd.Rules([], False)
    for _ in fuzz.rounds(500):
        inner = chance.choice([same_program(chance), 'cmd://' + chance.choice(['id', '{', "'{}'"]),
                               some_vnl(vdelxcd, chance)])
        odd = hidden(chance, inner)
        odd = spoilt(fuzz, odd) if chance.random() < 0.5 else odd
        vnl = allowed(vdelxcd, rules, odd)
        programs += 'cmd://' in odd
        if vnl:
            harmless += 1
            # What would be opened is asked of the registry, not of the Vnl.
            for level in vnl.levels():
                plug = vdelxcd.PLUGS.get(level.scheme, vdelxcd.Bridge)
                assert plug is not vdelxcd.Command or level.head == 'cmd://ls', odd
                assert plug is not vdelxcd.Bridge or text and 'agno://' in text, odd
    assert programs > 200 and harmless > 20


def test_a_file_that_a_container_wrote_is_no_network(vdelxcd, fuzz, tmp_path, monkeypatch):
    chance, alias = fuzz.chance, tmp_path / 'net'
    monkeypatch.setattr(vdelxcd, 'START_DIRECTORY', str(tmp_path))
    rules = read(vdelxcd, tmp_path, EVERYTHING)
    for _ in fuzz.rounds(100):
        alias.write_text(hidden(chance, same_program(chance)) + '\n')
        text = chance.choice(['net', './net', str(alias), path(chance, str(alias)), 'x/../net',
                              quoted(chance, str(alias), '/'), 'vde://net'])
        for odd in text, 'vlan://3{%s' % text:
            vnl = allowed(vdelxcd, rules, odd)
            inner = list(vnl.levels())[-1]
            assert (inner.scheme, inner.address) == ('vde', str(alias)), odd
