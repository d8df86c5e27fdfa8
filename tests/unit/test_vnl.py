"""The VNL grammar: what is read, what it becomes, what is refused."""

import errno
import grp
import os
import random
import string
import sys

import pytest

NO_GROUP = 'no-such-group-anywhere'

# Python before 3.7 takes text for ASCII where no locale is set; nothing else can come in there.
ACUTE = 'é' if sys.getfilesystemencoding().lower() == 'utf-8' else 'e'


@pytest.fixture(scope='module')
def schemes(vdelxcd):
    """The schemes of the first hour, and one for each way in which a scheme may be written."""
    class Ring(vdelxcd.Plug):
        """Options in brackets, a path as address, a port as a bare word."""

        STYLE = '['
        OPTIONS = {'port': vdelxcd.number(1, 9), 'portgroup': vdelxcd.word, 'group': vdelxcd.word}

        @staticmethod
        def bare_option(text):
            return 'port' if text.isdigit() else None

    class Lane(vdelxcd.Plug):
        """Options after slashes, and another network in braces."""

        STYLE, NESTS = '/', True
        OPTIONS = {'untag': vdelxcd.number(1, 9), 'trunk': vdelxcd.flag}

    class Both(Lane):
        """Options either way."""

        STYLE = '/['

    plugs = {name: vdelxcd.PLUGS[name] for name in ('null', 'tap', 'vxvde')}
    plugs.update(ring=Ring, lane=Lane, both=Both)
    return plugs


@pytest.fixture(scope='module')
def parse(vdelxcd, schemes):
    """parse(text) is the Vnl of a text."""
    return lambda text: vdelxcd.parse_vnl(text, schemes)


def parts(vnl):
    """All that is in a Vnl, to be compared."""
    return [(level.scheme, level.address, level.options, level.head, level.exact, level.network,
             level.named, level.spellings, level.text) for level in vnl.levels()]


def refusal(vdelxcd, parse, text):
    """The Failure that a text gives."""
    with pytest.raises(vdelxcd.Failure) as caught:
        parse(text)
    return caught.value


# ---- schemes and paths --------------------------------------------------------------------------

@pytest.mark.parametrize('text, scheme, address', [
    ('vxvde://', 'vxvde', ''),
    ('vxvde://239.1.2.3', 'vxvde', '239.1.2.3'),
    ('tap://tap0', 'tap', 'tap0'),
    ('null://', 'null', ''),
    ('null://anything', 'null', 'anything'),
    ('strange-1_x://a/b', 'strange-1_x', 'a/b'),
    ('cmd://ssh host vde_plug', 'cmd', 'ssh host vde_plug'),
])
def test_a_vnl_is_a_scheme_and_an_address(parse, text, scheme, address):
    vnl = parse(text)
    assert (vnl.scheme, vnl.address, vnl.nested) == (scheme, address, None)


@pytest.mark.parametrize('path', ['/run/switch', 'a', 'a:/b', 'a:b', '/x:/y'])
def test_a_text_without_scheme_is_a_path_of_scheme_vde(parse, path):
    assert (parse(path).scheme, parse(path).address) == ('vde', path)
    assert parse(path).text == parse('vde://' + path).text


@pytest.mark.parametrize('text', ['://', '://x', 'VXVDE://', 'vx vde://', 'vxvde ://', ' vxvde://',
                                  'vxvdé://', 'a/b://c', "'vxvde'://", '%76xvde://', 'vxvde{://'])
def test_what_cannot_be_a_scheme_is_not_supported(vdelxcd, parse, text):
    assert refusal(vdelxcd, parse, text).errno == errno.EPROTONOSUPPORT


def test_the_first_separator_ends_the_scheme(parse):
    assert parse('ring://a://b').address == 'a://b'


# ---- quoting ------------------------------------------------------------------------------------

@pytest.mark.parametrize('quoted, plain', [
    ("'a b'", 'a b'),
    ('"a b"', 'a b'),
    ("'a'\"b\"c", 'abc'),
    ("'\"'", '"'),
    ('"\'"', "'"),
    ("'\\'", '\\'),
    ('"\\""', '"'),
    ('"\\\\"', '\\'),
    ('\\\\', '\\'),
    ('\\a', 'a'),
    ('\\[', '['),
    ('"["', '['),
    ('%5b', '['),
    ('%5B', '['),
    ('%41%62', 'Ab'),
    ('a%2fb', 'a/b'),
    ('%25', '%'),
    ("'%41'", '%41'),
    ('\\%41', '%41'),
    ("''", ''),
    (''.join('%%%02x' % byte for byte in ACUTE.encode()), ACUTE),
    (ACUTE, ACUTE),
])
def test_quotes_backslashes_and_percent_are_resolved(parse, quoted, plain):
    assert parse('ring://' + quoted).address == plain
    assert parse('ring://x[group=%sx]' % quoted).options == {'group': plain + 'x'}


def test_a_quoted_separator_separates_nothing(parse):
    assert parse("ring://a'[port=1]'").address == 'a[port=1]'
    assert parse('ring://a%5bport=1%5d').options == {}
    assert parse('ring://x[group=a%2fport=1]').options == {'group': 'a/port=1'}
    assert parse('ring://x[group=a\\]b]').options == {'group': 'a]b'}
    assert parse('lane://1\\{vxvde://').nested is None
    assert parse('lane://1%7bvxvde:%2f%2f').address == '1{vxvde://'


def test_a_quoted_name_is_the_name(parse):
    assert parse("vxvde:///'port'=5").text == parse('vxvde:///port=5').text
    assert parse('vxvde:///%70ort=5').text == parse('vxvde:///port=5').text
    assert parse('vxvde://239%2e1.2.3').text == parse('vxvde://239.1.2.3').text


def test_only_the_first_equals_sign_separates(parse):
    assert parse('ring://x[group=a=b]').options == {'group': 'a=b'}


@pytest.mark.parametrize('text', [
    "ring://'", 'ring://"', 'ring://a"b', "ring://'a\\'b'", 'ring://\\', 'ring://"\\', 'ring://%',
    'ring://%4', 'ring://%4g', 'ring://%-1', 'ring://%+1', 'ring://% 1', 'ring://a[port=1',
    'ring://a[port=1]b', 'ring://a[port=1][group=x]', 'lane://1{vxvde://}x', 'both://1[{vxvde://',
    'lane://1{vxvde://239.1.1.1{null://}}',
])
def test_what_is_unfinished_or_goes_on_after_its_end_is_refused(vdelxcd, parse, text):
    assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


@pytest.mark.parametrize('text', [
    'null://\x00', 'null://\n', 'null://a\x1b[2J', 'null://\x7f', 'null://%0a', 'null://%00',
    'null://%1b', 'ring://x[group=%0a]', 'ring://x[%0a=b]', 'ring://x[group=\u2028]',
    'null://\udcff', 'null://%ff', 'null://%c3', 'null://\ud800', 'ring://x[group=%ff]',
    'lane://1{null://%0a}', 'nosuch://\n', 'nosuch://\udcff', 'vde://\x80', '\u202e://',
])
def test_control_characters_and_bytes_that_are_no_text_are_refused(vdelxcd, parse, text):
    assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


# ---- options ------------------------------------------------------------------------------------

def test_options_after_slashes(parse):
    vnl = parse('vxvde://239.1.2.3/port=5/vni=6/v4')
    assert vnl.options == {'port': '5', 'vni': '6', 'v4': None}
    assert vnl.text == 'vxvde://239.1.2.3/port=5/vni=6/v4'
    assert parse('vxvde:////port=5//').text == 'vxvde:///port=5'


def test_options_in_brackets(parse):
    vnl = parse('ring:///run/sw[port=5/group=staff]')
    assert (vnl.address, vnl.options) == ('/run/sw', {'port': '5', 'group': 'staff'})
    assert vnl.text == 'ring:///run/sw[port=5/group=staff]'
    assert parse('ring:///run/sw[]').text == 'ring:///run/sw'


def test_a_bare_word_may_be_the_value_of_an_option(parse):
    assert parse('ring://x[3]').text == 'ring://x[port=3]'
    assert parse('ring://x[3/group=y]').options == {'port': '3', 'group': 'y'}


def test_a_scheme_may_take_options_either_way(parse):
    expected = parse('both://1/untag=2/trunk{null://}').text
    assert parse('both://1[untag=2/trunk]{null://}').text == expected
    assert expected == 'both://1/untag=2/trunk{null://}'


def test_a_short_name_is_the_first_that_it_begins_in_the_order_of_the_table(parse):
    assert parse('ring://x[p=3]').options == {'port': '3'}
    assert parse('ring://x[portg=3]').options == {'portgroup': '3'}
    assert parse('ring://x[port=3]').options == {'port': '3'}
    assert parse('vxvde:///p=5/t=3/e=9').options == {'port': '5', 'ttl': '3', 'expiretime': '9'}
    assert parse('vxvde:///v=5').options == {'vni': '5'}


@pytest.mark.parametrize('text', [
    'vxvde:///nosuch=1', 'vxvde:///ports=1', 'vxvde:///PORT=1', 'vxvde:///=1', 'vxvde:///nosuch',
    'vxvde:///port=1/port=1', 'vxvde:///port=1/p=2', 'vxvde:///v4/v4', 'vxvde:///v4=1',
    'vxvde:///v4=', 'vxvde:///port', 'vxvde:///port=', 'vxvde:///if', 'vxvde:///if=',
    'ring://x[nosuch=1]', 'ring://x[3/port=4]', 'ring://x[word]', 'ring://x[group=]',
    'lane://1/trunk=1{null://}', 'tap:///tap0', 'tap://tap0/port=1', 'vxvde://239.1.1.1[port=5]',
])
def test_unknown_repeated_and_malformed_options_are_refused(vdelxcd, parse, text):
    assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


def test_a_refusal_names_the_option(vdelxcd, parse):
    assert 'nosuch' in str(refusal(vdelxcd, parse, 'vxvde:///nosuch=1'))
    assert 'port' in str(refusal(vdelxcd, parse, 'vxvde:///p=0'))
    assert 'port' in str(refusal(vdelxcd, parse, 'vxvde:///port=1/p=1'))


@pytest.mark.parametrize('option, good, wrong', [
    ('port', '1 65535', '0 65536 -1 +1 1.0 0x10 1e3 1_0'),
    ('vni', '0 1 16777215', '16777216 -1 99999999999999999999'),
    ('ttl', '1 255', '0 256'),
    ('hashsize', '1 16777216', '0 x'),
    ('expiretime', '1 2147483648', '0 x'),
    ('rcvbuf', '1 1k 4m 1M 1G 1099511627776', '0 k 1kk 1p 1.5m -1k 1t1 0x1k 9999999999t'),
])
def test_numbers_are_decimal_and_within_their_range(vdelxcd, parse, option, good, wrong):
    for value in good.split():
        assert option in parse('vxvde:///%s=%s' % (option, value)).options
    for value in wrong.split():
        text = 'vxvde:///%s=%s' % (option, value)
        assert refusal(vdelxcd, parse, text).errno == errno.EINVAL, text


@pytest.mark.parametrize('text, same', [
    ('1k', '1024'), ('2K', '2048'), ('4m', '4194304'), ('1M', '1048576'), ('3g', '3221225472'),
    ('1t', '1099511627776'), ('0004m', '4m'), ('4194304', '4m'),
])
def test_a_size_has_suffixes_of_1024_each(parse, text, same):
    assert (parse('vxvde:///rcvbuf=' + text).text == parse('vxvde:///rcvbuf=' + same).text)
    assert parse('vxvde:///rcvbuf=1k').options == {'rcvbuf': '1024'}


@pytest.mark.skipif(ACUTE == 'e', reason='this Python takes text for ASCII: set LANG=C.UTF-8')
def test_digits_of_other_scripts_are_no_digits(vdelxcd, parse):
    for value in '٣', '²', '１':
        for option in 'port', 'vni', 'rcvbuf':
            text = 'vxvde:///%s=%s' % (option, value)
            assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


def test_leading_zeros_of_a_number_mean_nothing(parse):
    assert parse('vxvde:///port=005').text == 'vxvde:///port=5'
    assert parse('vxvde:///vni=010').options == {'vni': '10'}


def test_a_very_long_number_is_only_out_of_range(vdelxcd, parse):
    for option in 'port', 'vni', 'rcvbuf', 'ttl':
        text = 'vxvde:///%s=%s' % (option, '9' * 20000)
        assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


# ---- vxvde --------------------------------------------------------------------------------------

def test_vni_and_grp_take_the_name_of_a_group(vdelxcd, parse):
    group = max((entry for entry in grp.getgrall() if entry.gr_gid < 1 << 24),
                key=lambda entry: entry.gr_gid)
    if not group.gr_name.isdigit():
        assert parse('vxvde:///vni=' + group.gr_name).options == {'vni': str(group.gr_gid)}
        assert parse('vxvde:///grp=' + group.gr_name).options == {'grp': str(group.gr_gid)}
    for option in 'vni', 'grp':
        text = 'vxvde:///%s=%s' % (option, NO_GROUP)
        assert NO_GROUP in str(refusal(vdelxcd, parse, text))


def test_grp_without_a_value_is_the_group_of_the_daemon(parse):
    expected = {'grp': str(os.getegid())}
    assert parse('vxvde:///grp').options == parse('vxvde:///grp=').options == expected


@pytest.mark.parametrize('text, address, vni', [
    ('vxvde:///grp=1234', '239.0.4.210', '1234'),
    ('vxvde://239.9.9.9/grp=258', '239.0.1.2', '258'),
    ('vxvde:///grp=258/vni=7', '239.0.1.2', '7'),
    ('vxvde:///vni=7/grp=258', '239.0.1.2', '7'),
    ('vxvde:///v6/grp=258', 'ff05:56de::102', '258'),
    ('vxvde://ff05:56de::ab12:3456/grp=1', 'ff05:56de::ab00:1', '1'),
])
def test_grp_sets_the_end_of_the_group_address_and_the_vni(vdelxcd, parse, text, address, vni):
    vnl = parse(text)
    filled_address, options = vdelxcd.Vxvde.fill_in(vnl.address, vnl.options)
    assert (filled_address, options['vni']) == (address, vni)
    assert vnl.exact.split('//')[1].split('/')[0] == address


@pytest.mark.parametrize('text, address', [
    ('vxvde://', '239.0.0.1'), ('vxvde:///v4', '239.0.0.1'), ('vxvde:///v6', 'ff05:56de::1'),
    ('vxvde://239.1.1.1/v4', '239.1.1.1'), ('vxvde://ff02::5/v6', 'ff02::5'),
    ('vxvde:///bind=192.0.2.1', '239.0.0.1'), ('vxvde:///v6/bind=2001:db8::1', 'ff05:56de::1'),
    ('vxvde://ff02::5/bind=2001:db8::1', 'ff02::5'),
])
def test_the_group_has_a_default_for_each_family(parse, text, address):
    level = parse(text)
    assert level.exact.split('//')[1].split('/')[0] == address


@pytest.mark.parametrize('text', [
    'vxvde:///v4/v6', 'vxvde://239.1.1.1/v6', 'vxvde://ff02::5/v4', 'vxvde:///v6/bind=192.0.2.1',
    'vxvde:///v4/bind=2001:db8::1', 'vxvde:///bind=2001:db8::1', 'vxvde://239.1.1.1/bind=::1',
    'vxvde://ff02::5/bind=192.0.2.1',
])
def test_ipv4_and_ipv6_do_not_mix(vdelxcd, parse, text):
    assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


@pytest.mark.parametrize('address', [
    '192.0.2.1', '223.255.255.255', '240.0.0.1', '2001:db8::1', '::', '::ffff:239.0.0.1', '239.1.1',
    '239.1.1.1.1', '239.1.1.256', '0xef.0.0.1', '239.0.0.01x', '4009754625', 'ff02::5%25lo',
    'ff02:::5', 'example.org', ' 239.0.0.1', '239.0.0.1 ',
])
def test_a_group_is_a_multicast_address(vdelxcd, parse, address):
    assert refusal(vdelxcd, parse, 'vxvde://' + address).errno == errno.EINVAL


def test_an_address_has_one_spelling(parse):
    assert parse('vxvde://FF05:56DE:0:0:0:0:0:1').text == 'vxvde://ff05:56de::1'
    assert parse('vxvde:///v6/bind=2001:DB8:0::1').options['bind'] == '2001:db8::1'


# ---- interface names ----------------------------------------------------------------------------

@pytest.mark.parametrize('name, good', [
    ('tap0', True), ('a' * 15, True), ('a' * 16, False), ('', False), ('.', False), ('..', False),
    ('a/b', False), ('a:b', False), ('a b', False), (' a', False), ('a%25d', False),
    (ACUTE * (15 // len(ACUTE.encode())), True), (ACUTE * 16, False),
])
def test_an_interface_name_is_one_that_the_kernel_takes(vdelxcd, parse, name, good):
    for text in 'tap://%s' % name.replace('/', '%2f'), 'vxvde:///if=%s' % name.replace('/', '%2f'):
        if good:
            parse(text)
        else:
            assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


# ---- nesting ------------------------------------------------------------------------------------

def test_a_nested_vnl_has_levels_from_the_outside_in(parse):
    vnl = parse('lane://3/untag=2{vxvde://239.1.1.1/p=5}')
    assert [level.head for level in vnl.levels()] == [
        'lane://3/untag=2', 'vxvde://239.1.1.1/port=5']
    assert vnl.text == 'lane://3/untag=2{vxvde://239.1.1.1/port=5}'


@pytest.mark.parametrize('text, same', [
    ('lane://3{vxvde://', 'lane://3{vxvde://}'),
    ('lane://3{lane://4{vxvde://', 'lane://3{lane://4{vxvde://}}'),
    ('lane://3{lane://4{vxvde://}', 'lane://3{lane://4{vxvde://}}'),
    ('nosuch://3{vxvde://', 'nosuch://3{vxvde://}'),
    ('lane://3{/run/switch}', 'lane://3{vde:///run/switch}'),
    ('lane://3{ring://a[3]}', 'lane://3{ring://a[port=3]}'),
    ('both://3[u=2]{null://', 'both://3/untag=2{null://}'),
])
def test_the_closing_brace_may_be_missing(parse, text, same):
    assert parse(text).text == parse(same).text == same


def test_a_scheme_that_nests_nothing_takes_braces_as_text(parse):
    assert parse('ring://a{b}').address == 'a{b}'
    assert parse('ring://a{b}').nested is None


def test_thirty_two_levels_are_the_limit(vdelxcd, parse):
    fits = 'lane://1{' * 31 + 'null://' + '}' * 31
    assert len(list(parse(fits).levels())) == 32
    for text in 'lane://1{' + fits, 'lane://1{' * 450, 'x://{' * 800, 'x://{' * 800 + '}' * 800:
        assert refusal(vdelxcd, parse, text).errno == errno.EINVAL


# ---- properties ---------------------------------------------------------------------------------

def spell(random_, text):
    """The text in one of its many spellings."""
    spelled = []
    for char in text:
        way = random_.randrange(12)
        if way == 0:
            spelled.append(''.join('%%%02x' % byte for byte in char.encode()))
        elif way == 1 or char in '\\\'"%[]{}/= ':
            spelled.append(random_.choice(['\\%s', "'%s'" if char != "'" else '"%s"']) % char)
        else:
            spelled.append(char)
    return ''.join(spelled)


def some_text(random_, least=0):
    """A short text of anything that can be printed."""
    letters = string.ascii_letters + string.digits + string.punctuation + ' ' + ACUTE
    return ''.join(random_.choice(letters) for _ in range(random_.randint(least, 6)))


def some_vnl(random_, depth=0):
    """A VNL that follows the grammar: (text, the addresses that must come out of it)."""
    scheme = random_.choice(['vxvde', 'tap', 'ring', 'nosuch', 'lane', 'both'])
    options = []
    if scheme == 'vxvde':
        address = random_.choice(['', '239.1.2.3', 'ff05::7'])
        options = [random_.choice(['p=%d', 'port=%d', 'po=%d']) % random_.randint(1, 65535),
                   random_.choice(['vni=%d', 'v=%d']) % random_.randint(0, 99),
                   'ttl=%d' % random_.randint(1, 255), random_.choice(['r=3m', 'rcvbuf=77k'])]
    elif scheme == 'tap':
        address = 'tap%d' % random_.randint(0, 99)
    else:
        address = some_text(random_)
    if scheme == 'ring':
        options = ['port=%d' % random_.randint(1, 9), 'gr=' + spell(random_, some_text(random_, 1))]
    elif scheme in ('lane', 'both'):
        options = ['u=%d' % random_.randint(1, 9), random_.choice(['t', 'trunk', 'tr'])]
    options = random_.sample(options, random_.randint(0, len(options)))
    if scheme == 'nosuch':                  # left to others, quotes and all
        address = spelled = address.replace('{', '')
    else:
        spelled = spell(random_, address)
    text, addresses = scheme + '://' + spelled, [address]
    if options and (scheme == 'ring' or scheme == 'both' and random_.random() < 0.5):
        text += '[' + '/'.join(options) + ']'
    elif options:
        text += '/' + '/'.join(options)
    if scheme in ('lane', 'both', 'nosuch') and depth < 4 and random_.random() < 0.8:
        inner, inner_addresses = some_vnl(random_, depth + 1)
        text += '{' + inner + '}'
        addresses += inner_addresses
    return text, addresses


def test_the_canonical_text_of_a_vnl_is_read_as_the_same_vnl(parse):
    random_ = random.Random(20)
    for _ in range(4000):
        text, addresses = some_vnl(random_)
        vnl = parse(text)
        assert [level.address for level in vnl.levels()] == addresses, text
        assert parts(parse(vnl.text)) == parts(vnl), text


def test_all_spellings_of_a_level_name_the_same_network(parse):
    random_ = random.Random(21)
    for _ in range(2000):
        for level in parse(some_vnl(random_)[0]).levels():
            for spelling in level.spellings:
                assert parse(spelling).network == level.network, (level.text, spelling)
            assert parse(level.exact).exact == level.exact


def test_whatever_is_read_gives_a_vnl_or_a_failure(vdelxcd, parse):
    random_ = random.Random(22)
    pieces = ['vxvde://', 'ring://', 'lane://', 'both://', 'tap://', 'nosuch://', 'null://', '239.',
              '1', '.', ':', '::', 'ff05', 'port=', 'p=', 'vni=', 'grp', 'v6', 'v4', 'rcvbuf=',
              '9' * 30, 'k', 't', '/', '[', ']', '{', '}', '=', '%', '%4', '%41', '%00', '%ff',
              '\\', "'", '"', ' ', '\n', '\0', ACUTE, '\udcff', '\ud800', '-', '+']
    pieces += [] if ACUTE == 'e' else ['\U0001f600', '٣', '\N{KELVIN SIGN}']
    read = 0
    for _ in range(40000):
        text = ''.join(random_.choice(pieces) for _ in range(random_.randint(0, 9)))
        try:
            vnl = parse(text)
        except vdelxcd.Failure as failure:
            assert failure.errno in (errno.EINVAL, errno.EPROTONOSUPPORT), text
        else:
            read += 1
            assert parts(parse(vnl.text)) == parts(vnl), text
            assert vnl.text.isprintable()
    assert read > 2000


def test_whatever_is_read_for_the_registered_schemes_gives_a_vnl_or_a_failure(vdelxcd):
    random_ = random.Random(23)
    pieces = ['x', '1', '2', '7000', '/', '/', '[', ']', '{', '}', '=', ':', '->', '-', '..',
              '->h:9', '7000->h:9', '%41', '%', '\\', "'", '"', ' ', '239.1.1.1', 'ff05::1',
              '/a/../b', './c', '/./s', '']
    for plug in vdelxcd.PLUGS.values():
        pieces += [option + '=' for option in plug.OPTIONS]
    read, schemes = set(), sorted(vdelxcd.PLUGS)
    for _ in range(12000):
        scheme = random_.choice(schemes)
        count = random_.choice([0, 1, 2, 2, 3, 3, 4, 5, 7])
        text = scheme + '://' + ''.join(random_.choice(pieces) for _ in range(count))
        if random_.random() < 0.3:
            text = 'vlan://3{' + text + random_.choice(['', '}'])
        try:
            vnl = vdelxcd.read_vnl(text)
        except vdelxcd.Failure as failure:
            assert failure.errno in (errno.EINVAL, errno.EPROTONOSUPPORT), text
        else:
            read.update(level.scheme for level in vnl.levels())
            again = vdelxcd.read_vnl(vnl.text)
            assert parts(again) == parts(vnl), (text, vnl.text)
    assert read >= set(schemes), set(schemes) - read
