"""What is logged: one line of printable ASCII, capped, whoever chose its text."""

import random

import pytest

PRINTABLE = set(range(0x20, 0x7f))
NASTY = ['a\nb', 'a\r\nb', '\x1b[2J', '\0', '\x7f', '\x9b', 'é', '\u2028', '\u202e', '\ud800',
         '\udcff', '\U0001f600', '\t', '\\', '<3>vdelxcd[1]: forged']


@pytest.fixture
def logged(vdelxcd):
    """logged(text) gives what a Log writes for a text."""
    def logged(text, level=5):
        log, lines = vdelxcd.Log(), []
        log.write = lines.append
        log.line(level, text)
        assert len(lines) == 1
        return lines[0]
    return logged


def test_a_plain_text_is_written_as_it_is(logged):
    text = 'open interface: vxvde://239.0.0.1/vni=7 (vde0, pid 1 uid 0 gid 0) \\ ~'
    assert logged(text) == text.encode() + b'\n'


@pytest.mark.parametrize('text', NASTY)
def test_whatever_the_text_one_line_of_printable_ascii_is_written(vdelxcd, logged, text):
    for each in text, 'before ' + text + ' after', vdelxcd.printable(text), vdelxcd.excerpt(text):
        line = logged(each)
        assert line.endswith(b'\n')
        assert set(line[:-1]) <= PRINTABLE


def test_random_texts_are_written_as_one_line_of_bounded_length(vdelxcd, logged):
    random_ = random.Random(40)
    for _ in range(2000):
        text = ''.join(chr(random_.choice([random_.randrange(0x110000), random_.randrange(256)]))
                       for _ in range(random_.randrange(400)))
        line = logged(text)
        assert set(line[:-1]) <= PRINTABLE and line[-1:] == b'\n'
        assert len(line) <= vdelxcd.LOG_LINE_MAX + 4


@pytest.mark.parametrize('char', ['a', '\n', '\U0001f600'])
def test_a_long_line_is_cut_off_and_shows_it(vdelxcd, logged, char):
    line = logged(char * 100000)
    assert len(line) == vdelxcd.LOG_LINE_MAX + 4
    assert line.endswith(b'...\n')
    assert logged('a' * vdelxcd.LOG_LINE_MAX) == b'a' * vdelxcd.LOG_LINE_MAX + b'\n'


def test_a_text_made_printable_can_be_told_from_every_other(vdelxcd):
    texts = ['\n', '\\n', '\\\\n', '\\\n', 'n', '\x1b', '\\x1b', 'é', '\\xe9']
    assert len({vdelxcd.printable(text) for text in texts}) == len(texts)


def test_a_long_vnl_leaves_room_for_who_asked_and_why(vdelxcd, logged):
    for vnl in 'cmd://' + 'a' * 4089, '\n' * 4095, '\U0001f600' * 1000:
        line = logged('open interface permission denied: %s (%s): %s' % (
            vdelxcd.excerpt(vnl), 'vde0123456789ab, pid 4194304 uid 4294967295 gid 4294967295',
            'pfxdeny cmd://, /etc/vdelxcd.conf:12'))
        assert line.endswith(b', /etc/vdelxcd.conf:12\n')


def test_details_are_written_only_when_asked_for(vdelxcd):
    log, lines = vdelxcd.Log(), []
    log.write = lines.append
    log.detail('one')
    log.verbose = True
    log.detail('two')
    assert lines == [b'two\n']


@pytest.mark.parametrize('error', [BlockingIOError(11, 'x'), BrokenPipeError(32, 'x'),
                                   OSError(28, 'x'), OSError(9, 'x')])
def test_a_line_that_cannot_be_written_is_lost_and_hurts_nobody(vdelxcd, error):
    log = vdelxcd.Log()

    def write(_):
        raise error
    log.write = write
    log.line(3, 'text')


def test_who_keeps_count_of_refusals_does_not_grow_without_end(vdelxcd):
    throttle = vdelxcd.Throttle()
    for number in range(3 * throttle.CONTAINERS_MAX):
        throttle.note('net:[%d]' % number, True)
    assert len(throttle.lines) <= throttle.CONTAINERS_MAX
    assert throttle.left('net:[%d]' % number) < throttle.LINES


@pytest.mark.parametrize('text, line', [
    ('plain: /vde/é', 'plain: /vde/é'), ('a\nb', 'a\\nb'), ('\x1b[2J', '\\x1b[2J'), ('\r', '\\r'),
    ('\u2028', '\\u2028'), ('\u202e', '\\u202e'), ('\udcff', '\\udcff'), ('\t', '\\t'),
])
def test_the_client_prints_one_line(vdelxcc, text, line):
    assert vdelxcc.one_line(text) == line
