"""Documents that cannot drift: help texts, manual pages and the README say the same."""

import os
import re
import subprocess

import pytest

from conftest import ROOT, require

PAGES = ['vdelxcc.1', 'vdelxcd.1', 'vnl.7']
PROGRAMS = ['vdelxcc', 'vdelxcd']


def read(*parts):
    """The text of a file of the project."""
    with open(os.path.join(ROOT, *parts), encoding='utf-8') as file:
        return file.read()


@pytest.fixture
def taken(vdelxcc, vdelxcd, monkeypatch):
    """taken(program) gives the options it takes, without and with a value: two sets."""
    def taken(name):
        module, found = {'vdelxcc': vdelxcc, 'vdelxcd': vdelxcd}[name], []

        def split_options(arguments, *tables):
            found.extend(tables)
            return [], ['/socket']
        with monkeypatch.context() as patch:
            patch.setattr(module, 'split_options', split_options)
            module.parse_arguments([])
        return [{'--' + long_name for long_name in table}
                | {'-' + letter for letter in table.values() if letter} for table in found]
    return taken


@pytest.fixture
def options(taken):
    """options(program) gives all options it takes: {'-s', '--socket', ...}."""
    return lambda name: set().union(*taken(name))


def help_lines(text):
    """The lines of a help text that describe an option."""
    return [line for line in text.split('\n') if re.match(r' +-', line)]


def options_in(line):
    """The options that a line names before its description."""
    return set(re.findall(r'(?:^|[\s,])(--?[A-Za-z][a-z-]*)', re.split(' {2,}', line.strip())[0]))


def manual_options(name):
    """The options that the manual page has an entry for."""
    found = set()
    for line in read('man', name + '.1').split('\n'):
        if line.startswith('.It Fl '):
            found |= {'-' + word for word in re.findall(r'\bFl (\S+)', line)}
    return found


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_names_every_option_that_is_taken_and_no_other(name, options, vdelxcc, vdelxcd):
    text = {'vdelxcc': vdelxcc, 'vdelxcd': vdelxcd}[name].HELP
    named = set().union(*map(options_in, help_lines(text)))
    assert named == options(name)
    assert len(named) > 8


@pytest.mark.parametrize('name', PROGRAMS)
def test_help_shows_which_options_take_a_value(name, taken, vdelxcc, vdelxcd):
    text = {'vdelxcc': vdelxcc, 'vdelxcd': vdelxcd}[name].HELP
    taking = set()
    for line in help_lines(text):
        if re.match(r' +(-\w, )? *--[a-z-]+ [A-Z]', line):
            taking |= options_in(line)
    assert taking == taken(name)[1]


def test_the_completion_knows_all_options_and_schemes_and_no_other(options, taken, vdelxcc,
                                                                   vdelxcd):
    words = set(re.findall(r"[^\s'=();|]+", vdelxcc.COMPLETION.split('\n', 1)[1]))
    assert {word for word in words if re.match('--?[A-Za-z]', word)} - {
        '-e', '-f', '-o', '-F', '-W'} == options('vdelxcc')
    assert {word[:-3] for word in words if word.endswith('://')} == set(vdelxcd.PLUGS)
    places = re.findall(r'^ {8}(-\S+)\)', vdelxcc.COMPLETION, re.M)
    assert set('|'.join(places).split('|')) == taken('vdelxcc')[1]


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_manual_page_describes_every_option_and_no_other(name, options):
    assert manual_options(name) == options(name)


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_synopsis_of_the_manual_page_has_every_short_option(name, options):
    synopsis = read('man', name + '.1').split('.Sh SYNOPSIS')[1].split('.Sh ')[0]
    letters = set()
    for word in re.findall(r'\bFl ([A-Za-z]+)', synopsis):
        letters |= {'-' + letter for letter in word}
    assert letters == {option for option in options(name) if len(option) == 2}


def commands(text, name):
    """The arguments of each command line of a program that a text shows."""
    found = []
    for line in text.replace('\\\n', ' ').split('\n'):
        for rest in re.findall(r'\b%s(?:\.py)?((?: +[^\s`|;&<>#)]+)+)' % name, line):
            found.append(rest.split())
    return found


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_readme_uses_only_options_that_exist(name, options):
    known = options(name)
    shown = commands(read('README.md'), name)
    assert any(argument.startswith('-') or '://' in argument for each in shown for argument in each)
    for arguments in shown:
        for argument in arguments:
            if argument.startswith('--') and len(argument) > 2:
                assert argument.split('=')[0] in known, arguments
            elif argument.startswith('-') and argument[1:2].isalpha():
                assert argument[:2] in known, arguments


@pytest.mark.parametrize('page', PAGES)
def test_a_manual_page_is_clean(page):
    require('mandoc')
    done = subprocess.run(['mandoc', '-Tlint', '-Wwarning', os.path.join(ROOT, 'man', page)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert (done.returncode, done.stdout) == (0, '')


def test_every_manual_page_is_among_those_that_are_checked():
    assert sorted(os.listdir(os.path.join(ROOT, 'man'))) == PAGES


def test_the_manual_page_shows_the_table_of_errnos(vdelxcd):
    section = read('man', 'vdelxcd.1').split('.Sh FRAMES AND ERRORS')[1].split('.Sh ')[0]
    names = {number: name for name, number in vars(vdelxcd.errno).items() if name.startswith('E')}
    names[vdelxcd.errno.EAGAIN] = 'EAGAIN'          # and not EWOULDBLOCK
    table, place, fate = {}, None, None
    for line in section.split('\n'):
        if line.startswith('.It '):
            item = line[4:]
            if item in vdelxcd.FATES:
                place, fate = table.setdefault(item, {}), None
            else:
                fate = item.rstrip(':')
        elif line == '.El':
            fate = None
        elif line.startswith('.Er ') and fate:
            place.update((name, fate) for name in line.split()[1:])
        elif line in ('drop', 'end', 'gone') and fate == 'any other':
            place[None] = line
    assert table == {place: {number and names[number]: fate for number, fate in fates.items()}
                     for place, fates in vdelxcd.FATES.items()}


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_manual_page_has_the_files_and_variables_that_the_program_uses(name):
    text = read('man', name + '.1')
    words = {'vdelxcc': ['VDELXC_PATH', '/dev/net/tun'], 'vdelxcd': ['/dev/net/tun', '/dev/log']}
    assert [word for word in words[name] if word not in text] == []


def test_every_scheme_and_every_option_is_in_the_manual_of_vnls(vdelxcd):
    text = read('man', 'vnl.7')
    for scheme, plug in vdelxcd.PLUGS.items():
        assert scheme + '://' in text
        for option in plug.OPTIONS:
            assert re.search(r'\b%s\b' % option, text), (scheme, option)


def test_every_directive_is_in_the_manual_of_the_daemon(vdelxcd):
    text = read('man', 'vdelxcd.1')
    for tag in vdelxcd.TAGS:
        assert re.search(r'^\.It .*\b%s\b' % tag, text, re.M), tag
