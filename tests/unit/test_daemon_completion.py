"""The daemon's completions for bash, asked of bash itself."""

import os
import subprocess

import pytest

from conftest import DAEMON, PYTHON, require


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    """What --completion bash prints, in a file."""
    require('bash')
    path = tmp_path_factory.mktemp('completion') / 'vdelxcd'
    done = subprocess.run([PYTHON, DAEMON, '--completion', 'bash'], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (0, b'')
    path.write_bytes(done.stdout)
    return str(path)


@pytest.fixture
def complete(script, tmp_path):
    """complete(words, ...) gives what bash offers for the last of them, sorted.

    The words are given as bash splits them: also at : and =.
    """
    for name in 'rules.conf', 'rules 2.conf', 'other':
        (tmp_path / name).write_text('')
    (tmp_path / 'sub').mkdir()

    def complete(*words):
        code = ('source "$0" || exit; COMP_WORDS=(vdelxcd "$@"); COMP_CWORD=$#; _vdelxcd; '
                '((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"; :')
        done = subprocess.run(['bash', '--norc', '-uc', code, script] + list(words), timeout=30,
                              cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True)
        assert (done.returncode, done.stderr) == (0, '')
        return sorted(done.stdout.splitlines())
    return complete


FILES = ['other', 'rules 2.conf', 'rules.conf', 'sub']


def test_every_option_is_offered(complete, vdelxcd):
    names = ['--' + name for table in (vdelxcd.FLAGS, vdelxcd.VALUED) for name in table]
    letters = ['-' + letter for table in (vdelxcd.FLAGS, vdelxcd.VALUED)
               for letter in table.values() if letter]
    assert complete('-') == sorted(names + letters)
    assert complete('--') == sorted(names)
    assert complete('-v', '/s', '--check') == ['--check-config']
    assert complete('--ver') == ['--verbose', '--version']
    assert complete('--nosuch') == []


@pytest.mark.parametrize('words', [['-f', 'ru'], ['--rcfile', 'ru'], ['-p', 'ru'],
                                   ['-v', '--pidfile', 'ru'], ['--rcfile', '=', 'ru'],
                                   ['x', '-f', 'ru'], ['ru'], ['-v', 'ru'], ['-m', '600', 'ru']])
def test_files_are_offered_where_a_file_stands(complete, words):
    assert complete(*words) == ['rules 2.conf', 'rules.conf']


def test_files_are_offered_before_anything_is_typed(complete):
    assert complete('') == complete('-f', '') == complete('--rcfile', '=') == FILES
    assert complete('--rcfile=su') == ['--rcfile=sub']      # where bash was told not to split


@pytest.mark.parametrize('words', [
    ['/s', 'vx'], ['-v', '/s', 'vx'], ['--test', 'vx'], ['--test', '=', 'vx'],
    ['--check-config', 'vx'], ['-f', 'rules.conf', '--test', 'null', ':', '//', 'vx'],
    ['-m', '600', '/s', '-d', 'vx'], ['/s', '--ready-fd', '3', 'vx'],
    ['--rcfile', '=', 'rules.conf', '/s', 'vx']])
def test_schemes_are_offered_where_a_vnl_stands(complete, words):
    assert complete(*words) == ['vxlan://', 'vxvde://']


def test_every_scheme_is_offered(complete, vdelxcd):
    assert complete('/s', '') == sorted(scheme + '://' for scheme in vdelxcd.PLUGS)
    assert complete('/s', './ru') == ['./rules 2.conf', './rules.conf']     # a path is a VNL, too


def test_a_scheme_is_completed_behind_its_colon(complete):
    assert complete('/s', 'vxvde', ':') == ['//']           # bash replaces what follows the colon
    assert complete('--test', 'vxvde', ':', '/') == ['//']
    assert complete('--test', '=', 'vxvde', ':') == ['//']


@pytest.mark.parametrize('words', [['-m', ''], ['--mode', '='], ['--ready-fd', '']])
def test_nothing_is_offered_for_other_values(complete, words):
    assert complete(*words) == []


def test_users_are_offered(complete):
    assert 'root' in complete('--user', 'roo') and 'root' in complete('--user', '=', '')


def test_sessions_are_offered_but_no_name_that_a_shell_would_act_on(complete, tmp_path):
    lister = tmp_path / 'vdelxcd'
    lister.write_text("#!/bin/sh\ncat <<'END'\nPID OWNER INTERFACE STATE\n"
                      '12 0 vde0 up\n 123 0 eth.7 no answer\n 2 0 - no answer\n'
                      '77 0 $(reboot) up\n78 0 `id` up\n79 0 a;b up\n80 0 -rf up\n81 0 * up\nEND\n')
    lister.chmod(0o755)
    pids = ['12', '123', '2', '77', '78', '79', '80', '81']
    name = os.environ['PATH']
    os.environ['PATH'] = '%s:%s' % (tmp_path, name)
    try:
        assert complete('--close', '') == complete('--capture', '=', '') == sorted(
            pids + ['vde0', 'eth.7'])
        assert complete('--close', '12') == ['12', '123']
        assert complete('--capture', 'v') == ['vde0']
        assert complete('--close=v') == ['--close=vde0']
    finally:
        os.environ['PATH'] = name


def test_the_shell_is_offered(complete):
    assert complete('--completion', '') == complete('--completion', '=', 'b') == ['bash']


def test_the_script_is_for_the_program_under_both_names(script):
    done = subprocess.run(['bash', '--norc', '-c', 'source "$0"; complete -p', script], timeout=30,
                          stdout=subprocess.PIPE, universal_newlines=True, env=dict(os.environ))
    assert sorted(done.stdout.splitlines()) == [
        'complete -F _vdelxcd vdelxcd', 'complete -F _vdelxcd vdelxcd.py']
