"""The Makefile: the demo as root and as anybody, the tests' own commands, installing, the zipapp.

A tree that a test needs for itself is a copy, readable by everybody.
"""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import zipfile

import pytest

from conftest import (PACKAGES, PATH, PYTHON, ROOT, Daemon, kill_each, missing, processes, require,
                      require_namespaces, wait_until)

NOBODY = ['setpriv', '--reuid=nobody', '--regid=nogroup', '--clear-groups']
# /dev/net/tun as udev makes it, for everybody, in a mount namespace of its own
OPEN_TUN = ['unshare', '--mount', 'sh', '-ec', 'mount -t tmpfs tmpfs /dev/net; '
            'mknod -m 666 /dev/net/tun c 10 200; chmod 666 /dev/net/tun; exec "$@"', 'sh']


def run(*argv, cwd=ROOT, stdin=subprocess.DEVNULL, **environment):
    """Run a command to its end, in an environment without traces of an outer make."""
    env = {name: value for name, value in os.environ.items()
           if not name.startswith('MAKE') and name not in ('MFLAGS', 'ARGS', 'CI')}
    env.update(environment)
    return subprocess.run(argv, cwd=str(cwd), env=env, stdin=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=120)


def make(*argv, **more):
    """Run make to a good end and return what it printed."""
    done = run('make', *argv, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def need_root():
    """The test becomes another user, who can run the interpreter, and makes device nodes."""
    require('setpriv')
    if run(*(OPEN_TUN + NOBODY + ['env', PYTHON, '-c', ''])).returncode:
        pytest.skip('needs root with CAP_SETUID and CAP_MKNOD, and a python3 for everybody')


def no_source(directory, names):
    """Those of the names in a directory that are made, or neither files nor directories."""
    made = shutil.ignore_patterns('.git', '.venv*', '__pycache__', '.pytest_cache', '*.pyz')
    modes = {name: os.lstat(os.path.join(directory, name)).st_mode for name in names}
    return set(made(directory, names)) | {
        name for name, mode in modes.items() if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)}


@pytest.fixture
def tree():
    """A copy of the project that everybody can read and write, and nothing else in it."""
    require('make')
    with tempfile.TemporaryDirectory(prefix='vdelxc-') as directory:
        os.chmod(directory, 0o755)
        copy = os.path.join(directory, 'vdelxc')
        shutil.copytree(ROOT, copy, ignore=no_source)
        for path, _, files in os.walk(copy):
            os.chmod(path, 0o777)
            for name in files:
                os.chmod(os.path.join(path, name), 0o777)
        yield copy


def read(*path):
    """The text of a file."""
    with open(os.path.join(*path)) as file:
        return file.read()


def write(text, *path):
    """Make a file, or give it another text."""
    with open(os.path.join(*path), 'w') as file:
        file.write(text)


def write_script(text, *path):
    """Make a file of shell commands that can be run."""
    write('#!/bin/sh\n%s\n' % text, *path)
    os.chmod(os.path.join(*path), 0o755)


def files_in(directory):
    """The relative path and mode of everything below that is no directory."""
    found = {}
    for path, _, names in os.walk(str(directory)):
        for name in names:
            full = os.path.join(path, name)
            found[os.path.relpath(full, str(directory))] = stat.S_IMODE(os.lstat(full).st_mode)
    return found


# ---- help ---------------------------------------------------------------------------------------

def test_make_alone_lists_every_target():
    require('make')
    targets = re.search(r'^\.PHONY: (.*)$', read(ROOT, 'Makefile'), re.M).group(1).split()
    listed = re.findall(r'^  ([a-z-]+)  +\w+', make(), re.M)
    assert sorted(listed) == sorted(targets)
    assert {'demo', 'test', 'test-tools', 'test-pythons', 'install', 'zipapp'} <= set(listed)


# ---- demo ---------------------------------------------------------------------------------------

def traces():
    """Of the names that the demo uses in its own namespaces, those that the machine has."""
    names = ['/run/vde', '/run/vdelxcd.pid', '/run/netns/a', '/run/netns/b', '/sys/class/net/vde0']
    return [name for name in names if os.path.exists(name)]


@pytest.fixture
def python(tree):
    """A name of the interpreter that only one demo uses; whoever still runs under it is ended."""
    link = os.path.join(tree, 'python3')
    os.symlink(PYTHON, link)
    yield link
    kill_each(processes(link))


def check_story(done, python):
    """The demo ran to its end and showed three pings without loss."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ''
    assert done.stdout.count(' 3 received, 0% packet loss') == 3, done.stdout
    steps = re.findall(r'^\[(\d)/(\d)\] ', done.stdout, re.M)
    assert steps == [(str(number), str(len(steps))) for number in range(1, len(steps) + 1)] != []
    for command in ('(host)$ %s vdelxcd.py -d ' % python, '(a)$ %s vdelxcc.py ' % python,
                    '(b)$ %s vdelxcc.py ' % python, '(a)$ ping ', '(b)$ ping '):
        assert command in done.stdout


def test_demo_passes_and_leaves_nothing_behind(tree, python):
    require_namespaces()
    before = files_in(tree), traces()
    check_story(run('make', 'demo', cwd=tree, VDELXC_PYTHON=python), python)
    wait_until(lambda: not processes(python), what='no process of the demo is left')
    assert (files_in(tree), traces()) == before


def test_demo_passes_for_an_unprivileged_user(tree, python):
    require_namespaces()
    need_root()
    check_story(run(*(OPEN_TUN + NOBODY + ['make', 'demo']), cwd=tree, VDELXC_PYTHON=python),
                python)
    wait_until(lambda: not processes(python), what='no process of the demo is left')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tree, python, number):
    require_namespaces()
    # A client that never comes back: the daemon runs by then, in the middle of the story.
    write('import time\nprint("here I stay", flush=True)\nwhile True: time.sleep(9)\n',
          tree, 'vdelxcc.py')
    demo = subprocess.Popen(['sh', 'tests/demo.sh'], cwd=tree, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True, env=dict(os.environ, VDELXC_PYTHON=python))
    for line in demo.stdout:
        if line == 'here I stay\n':
            break
    assert len(processes(python)) >= 2          # daemon and client
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=10)    # the end of stdout: nobody of the demo holds it
    assert (demo.returncode, errors) == (1, 'demo: interrupted\n')
    wait_until(lambda: not processes(python), what='no process of the demo is left')


def test_demo_names_the_step_that_fails(tree, python):
    require_namespaces()
    write('import sys\nsys.exit("no network today")\n', tree, 'vdelxcc.py')
    done = run('make', 'demo', cwd=tree, VDELXC_PYTHON=python)
    assert done.returncode != 0
    assert 'no network today\n' in done.stderr
    assert 'demo: failed with exit status 1: (a)$ %s vdelxcc.py' % python in done.stderr
    assert 'It works' not in done.stdout


def test_demo_fails_when_the_containers_do_not_reach_each_other(tree, python):
    require_namespaces()
    story = read(tree, 'tests', 'demo.sh')      # every container on a network of its own:
    write(story.replace('vxvde://', 'null://').replace('-w 10', '-w 1'), tree, 'tests', 'demo.sh')
    done = run('make', 'demo', cwd=tree, VDELXC_PYTHON=python)
    assert done.returncode != 0
    assert 'demo: failed with exit status 1: (a)$ ping' in done.stderr


@pytest.mark.parametrize('setup, user, advice', [
    ('true', [], 'modprobe tun'),
    ('mknod -m 600 /dev/net/tun c 10 200', NOBODY, 'chmod 666 /dev/net/tun'),
], ids=['missing', 'closed'])
def test_demo_says_what_to_do_without_the_tun_device(tree, setup, user, advice):
    need_root()
    done = run('unshare', '--mount', 'sh', '-ec', 'mount -t tmpfs tmpfs /dev/net; %s; exec "$@"'
               % setup, 'sh', *(user + ['make', 'demo']), cwd=tree)
    assert done.returncode != 0
    reasons = [line for line in done.stderr.splitlines() if line.startswith('demo: ')]
    assert len(reasons) == 1 and '/dev/net/tun' in reasons[0] and advice in reasons[0]


# ---- the tests' own commands --------------------------------------------------------------------

PROBE = '''
import os
import pytest
from conftest import require


def test_root(tmp_path):
    assert os.getuid() == 0


def test_fails_if_asked():
    assert os.environ.get('FAIL') != 'yes'


def test_tool():
    require('vde_plug', 'mandoc')
'''


@pytest.fixture
def probe(tree):
    """A tree whose only tests are those of PROBE, and an environment that everybody can read."""
    for name in os.listdir(os.path.join(tree, 'tests')):
        path = os.path.join(tree, 'tests', name)
        if os.path.isdir(path):
            shutil.rmtree(path)
    write(PROBE, tree, 'tests', 'test_probe.py')
    packages = os.path.join(tree, 'venv', 'packages')
    shutil.copytree(os.path.dirname(os.path.dirname(pytest.__file__)), packages,
                    ignore=shutil.ignore_patterns('__pycache__', 'pip*', 'setuptools*'))
    os.mkdir(os.path.join(tree, 'venv', 'bin'))
    write_script('PYTHONPATH=%s exec %s "$@"' % (packages, PYTHON), tree, 'venv', 'bin', 'python')
    write('', tree, 'venv', 'made')
    return tree


def make_test(probe, *user, args='', jobs='1', **more):
    """The last line and all of the output of "make test", and whether it succeeded."""
    done = run(*(list(user) + ['make', 'test', 'VENV=venv', 'JOBS=' + jobs, 'ARGS=' + args]),
               cwd=probe, **more)
    assert done.stdout, done.stderr
    return done.stdout.splitlines()[-1], done.stdout + done.stderr, done.returncode == 0


def test_make_test_succeeds_and_fails_as_pytest_does(probe):
    require('vde_plug')
    last, text, good = make_test(probe)
    assert good and re.match('3 passed in ', last), text
    last, text, good = make_test(probe, FAIL='yes')
    assert not good and re.match('1 failed, 2 passed in ', last), text


SHARED = '''
import os, signal, time
import pytest


def test_at_the_same_time():
    """Each waits for the other."""
    open(%r, 'w').close()
    deadline = time.monotonic() + 10
    while not os.path.exists(%r):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_signal_of_a_terminal_is_ignored():
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGQUIT) == signal.SIG_DFL


@pytest.mark.alone
def test_alone():
    open('alone', 'x').close()
    time.sleep(0.3)
    os.remove('alone')


@pytest.mark.parametrize('number', range(8))
def test_not_beside_one_that_is_alone(number):
    assert not os.path.exists('alone')
    time.sleep(0.05)
    assert not os.path.exists('alone')


def test_fails_if_asked():
    assert os.environ.get('FAIL') != %r
'''


def test_jobs_share_the_files_of_tests(probe):
    os.remove(os.path.join(probe, 'tests', 'test_probe.py'))
    for mine, other in 'ab', 'ba':
        write(SHARED % (mine, other, mine), probe, 'tests', 'test_%s.py' % mine)
    for failing, results in ('', ['12 passed', '12 passed']), (
            'a', ['1 failed, 11 passed', '12 passed']), ('b', ['12 passed', '1 failed, 11 passed']):
        _, text, good = make_test(probe, jobs='2', FAIL=failing)
        assert good == (not failing), text
        assert re.findall('^([0-9a-z, ]*) in ', text, re.M) == results, text
        for each in 'ab':
            os.remove(os.path.join(probe, each))


def test_a_job_goes_on_in_another_directory(probe):
    """Over files that other jobs took, which come last there."""
    for directory in 'abc':
        os.mkdir(os.path.join(probe, 'tests', directory))
        for number in range(4):
            write('import time\ndef test(tmp_path_factory):\n    time.sleep(0.5)\n', probe,
                  'tests', directory, 'test_%s%d.py' % (directory, number))
    _, text, good = make_test(probe, jobs='4')
    results = re.findall('^([0-9]*) passed in ', text, re.M)
    assert good and len(results) == 4 and sum(map(int, results)) == 15, text


def test_make_test_hands_its_arguments_to_pytest(probe):
    last, text, good = make_test(probe, args="-k 'root or tool'")
    assert good and re.match('2 passed, 1 deselected in ', last), text


def test_make_test_names_what_was_skipped_and_how_to_get_it(probe):
    conftest = os.path.join(probe, 'tests', 'conftest.py')
    write(read(conftest).replace("'vde_plug':", "'no_such_tool':"), conftest)
    write(PROBE.replace('vde_plug', 'no_such_tool'), probe, 'tests', 'test_probe.py')
    last, text, good = make_test(probe)
    assert good and re.match('2 passed, 1 skipped in ', last), text
    assert 'no_such_tool is missing: apt-get install vdeplug' in text
    assert '\nor: apt-get install vdeplug\n' in text
    last, text, good = make_test(probe, CI='true')
    assert not good and re.match('1 failed, 2 passed in ', last), text


def test_make_test_makes_anybody_root_in_a_user_namespace(probe):
    need_root()
    require('vde_plug')
    last, text, good = make_test(probe, *NOBODY)
    assert good and re.match('3 passed in ', last), text


def test_make_test_says_how_to_get_a_virtual_environment(tree):
    write_script('echo "ensurepip is not available"; exit 1', tree, 'python')
    done = run('make', 'test', 'PYTHON=./python', cwd=tree)
    assert done.returncode != 0
    assert 'ensurepip is not available' in done.stderr
    assert 'apt-get install python3-venv' in done.stderr


def test_tools_are_installed_only_when_one_is_missing(tmp_path):
    require('make')
    log = str(tmp_path / 'log')
    for name, script in (('apt-get', 'echo "$DEBIAN_FRONTEND $*" >> %s' % log),
                         ('id', 'echo 0'),
                         ('dpkg-query', 'case $* in *$LACKS*) echo "unknown ok not-installed";; '
                                        '*) echo "install ok installed"; esac')):
        write_script(script, str(tmp_path), name)
    fakes = '%s:%s' % (tmp_path, PATH)
    assert make('test-tools', PATH=fakes, LACKS='none') == 'test-tools: all are installed\n'
    assert not os.path.exists(log)
    make('test-tools', PATH=fakes, LACKS='mandoc')
    assert read(log) == ('noninteractive update -q\n'
                         'noninteractive install -q -y --no-install-recommends mandoc\n')


def test_the_list_of_tools_has_every_package_that_a_test_may_ask_for():
    require('make')
    text = make('-s', '--eval', 'tools: ; @echo $(TOOLS)', 'tools')
    assert set(PACKAGES.values()) <= set(text.split())


def test_every_interpreter_is_tried_and_the_faulty_ones_are_named(probe, tmp_path):
    require('vde_plug')
    write(PROBE.replace('import pytest\n', 'import pytest\n\npytestmark = pytest.mark.core\n') + '''

def test_the_scripts_run_under_the_interpreter_itself():
    assert os.environ['VDELXC_PYTHON'] == %r
''' % os.path.realpath(PYTHON), probe, 'tests', 'test_probe.py')
    tools = tmp_path / 'bin'                    # everything on PATH but the interpreters
    tools.mkdir()
    for place in PATH.split(':'):
        for name in os.listdir(place) if os.path.isdir(place) else ():
            if not name.startswith('python3') and not os.path.lexists(str(tools / name)):
                (tools / name).symlink_to(os.path.join(place, name))
    for name, script in (
            ('python3.6', 'exit 127'),          # a pyenv shim may be like that
            ('python3.7', 'case $* in *version*) echo "$0 3.7.77";; *) echo no venv; exit 1; esac'),
            ('python3.8', 'exec %s "$@"' % PYTHON)):
        write_script(script, str(tools), name)
    os.rename(os.path.join(probe, 'venv'), os.path.join(probe, '.venv-3.8'))
    write(read(probe, '.venv-3.8', 'bin', 'python').replace('/venv/', '/.venv-3.8/'),
          probe, '.venv-3.8', 'bin', 'python')
    version = run(PYTHON, '-V').stdout.split()[1]

    def make_pythons(**more):
        done = run('make', '-e', 'test-pythons', cwd=probe, PATH=str(tools), HOME=str(tmp_path),
                   PYENV_ROOT=str(tmp_path / 'none'), **more)
        return done.returncode == 0, done.stdout, done.stderr
    good, out, errors = make_pythons()
    assert good, out + errors
    assert re.findall('^found: Python ([0-9.]+)', out, re.M) == ['3.7.77', version]
    assert '\nskipped: Python 3.7.77 has no virtual environment' in out
    assert 'no venv\n' in errors
    assert re.match('4 passed in ', out.splitlines()[-1])
    good, out, errors = make_pythons(CI='true')
    assert not good and 'failed under: 3.7.77\n' in errors
    good, out, errors = make_pythons(ARGS="-k 'root or tool'")
    assert good and re.match('2 passed, 2 deselected in ', out.splitlines()[-1])
    good, out, errors = make_pythons(FAIL='yes')
    assert not good and 'failed under: %s\n' % version in errors


# ---- installing ---------------------------------------------------------------------------------

def manual_pages():
    directory = os.path.join(ROOT, 'man')
    names = os.listdir(directory) if os.path.isdir(directory) else ()
    return ['share/man/man%s/%s' % (name[-1], name) for name in names if name[-2:] in ('.1', '.7')]


def test_install_puts_everything_in_its_place_and_uninstall_removes_just_that(tree, tmp_path):
    destination = tmp_path / 'a package'
    place = ['DESTDIR=%s' % destination, 'PREFIX=/opt/vde']
    run('sh', '-c', 'umask 077; exec make install "$@"', 'sh', *place, cwd=tree)
    expected = {name: 0o644 for name in manual_pages()}
    expected.update({'bin/vdelxcc': 0o755, 'bin/vdelxcd': 0o755})
    completions = 'share/bash-completion/completions/'
    expected.update({completions + 'vdelxcc': 0o644, completions + 'vdelxcd': 0o644})
    assert files_in(destination) == {'opt/vde/' + name: mode for name, mode in expected.items()}
    for name in 'vdelxcc', 'vdelxcd':
        program = destination / 'opt/vde/bin' / name
        assert program.read_bytes() == open(os.path.join(ROOT, name + '.py'), 'rb').read()
        assert run(str(program), '--version').stdout.startswith(name + ' ')
        script = run(PYTHON, str(program), '--completion', 'bash').stdout
        assert read(str(destination), 'opt/vde', completions + name) == script
        assert re.search(r'^complete .* %s\b' % name, script, re.M)
        assert run('bash', '-n', str(destination / 'opt/vde' / completions / name)).stderr == ''
    for directory in 'bin', completions:
        (destination / 'opt/vde' / directory / 'other').write_text('not ours')
    make('uninstall', *place, cwd=tree)
    assert sorted(files_in(destination)) == [
        'opt/vde/bin/other', 'opt/vde/%sother' % completions]
    make('uninstall', *place, cwd=tree)         # nothing there: nothing to do


def test_install_goes_to_usr_local_when_nothing_is_said(tree, tmp_path):
    make('install', 'DESTDIR=%s' % tmp_path, cwd=tree)
    assert {'usr/local/bin/vdelxcc', 'usr/local/bin/vdelxcd'} <= set(files_in(tmp_path))


# ---- the zipapp ---------------------------------------------------------------------------------

@pytest.fixture
def zipapp(tree):
    """The path of a new vdelxc.pyz."""
    make('zipapp', cwd=tree)
    return os.path.join(tree, 'vdelxc.pyz')


def test_zipapp_has_the_same_bytes_whoever_makes_it_and_when(tree, zipapp):
    with open(zipapp, 'rb') as file:
        first = file.read()
    for umask, interpreter, when in (('000', PYTHON, 1), ('077', sys.executable, 2000000000)):
        os.unlink(zipapp)
        for path, _, names in os.walk(tree):
            for name in names:
                os.utime(os.path.join(path, name), (when, when))
                os.chmod(os.path.join(path, name), 0o700 if when == 1 else 0o644)
        done = run('sh', '-c', 'umask %s; make zipapp PYTHON=%s' % (umask, interpreter), cwd=tree,
                   PYTHONHASHSEED=umask, LC_ALL='C', TZ='Asia/Tokyo')
        assert done.returncode == 0, done.stderr
        with open(zipapp, 'rb') as file:
            assert file.read() == first
        assert stat.S_IMODE(os.stat(zipapp).st_mode) == 0o755


def test_zipapp_is_stored_and_holds_just_the_two_scripts(zipapp):
    with open(zipapp, 'rb') as file:
        assert file.readline() == b'#!/usr/bin/env python3\n'
    with zipfile.ZipFile(zipapp) as members:
        assert members.namelist() == ['__main__.py', 'vdelxcc.py', 'vdelxcd.py']
        assert {member.compress_type for member in members.infolist()} == {zipfile.ZIP_STORED}
        for name in 'vdelxcc.py', 'vdelxcd.py':
            assert members.read(name).decode() == read(ROOT, name)


def test_zipapp_is_both_programs_by_argument_and_by_name(zipapp, tmp_path):
    for word, name in ('client', 'vdelxcc'), ('daemon', 'vdelxcd'):
        script = run(PYTHON, os.path.join(ROOT, name + '.py'), '--help').stdout
        link, copy = tmp_path / name, tmp_path / (name + '.pyz')
        link.symlink_to(zipapp)
        shutil.copy(zipapp, str(copy))
        for command in ([PYTHON, zipapp, word], [PYTHON, str(link)], [PYTHON, str(copy)],
                        [str(link)]):
            done = run(*(command + ['--help']), cwd=tmp_path)
            assert (done.returncode, done.stdout, done.stderr) == (0, script, '')
        done = run(PYTHON, str(link), '--no-such-option')   # status and text of the program
        assert (done.returncode, done.stdout) == (1, '') and name in done.stderr


@pytest.mark.parametrize('arguments', [[], ['server'], ['--help'], ['']])
def test_zipapp_called_wrongly_says_how_in_one_line(zipapp, arguments):
    done = run(PYTHON, zipapp, *arguments, cwd=os.path.dirname(zipapp))
    assert (done.returncode, done.stdout) == (1, '')
    assert re.match(r'Usage: vdelxc\.pyz client\|daemon .*\n$', done.stderr)


def test_zipapp_gives_two_containers_a_network(zipapp, host, new_container, closing, tmp_path):
    daemon = Daemon(host, tmp_path, start=False)
    daemon.argv = [PYTHON, zipapp, 'daemon', '-v', daemon.socket]
    closing(daemon).start()
    a, b = new_container('a'), new_container('b')
    for container, address in (a, '10.0.0.1'), (b, '10.0.0.2'):
        container.run(PYTHON, zipapp, 'client', '-s', daemon.socket, 'vxvde://')
        container.up('vde0', address + '/24')
    a.ping('10.0.0.2')


def test_zipapp_runs_where_only_a_minimal_python_is(zipapp, tmp_path):
    """A root file system of python3-minimal and its libraries, nothing else."""
    require('unshare', 'dpkg', 'ldd')
    python = os.path.realpath('/usr/bin/python3')
    name = os.path.basename(python)
    done = run('dpkg', '-L', name + '-minimal', 'lib%s-minimal' % name)
    if done.returncode:
        missing('python3-minimal', 'python3-minimal')
    libraries = re.findall(r'(/\S+) \(0x', run('ldd', python).stdout)
    for path in done.stdout.split('\n') + libraries:
        target = str(tmp_path) + path
        if os.path.isfile(path) and not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(zipapp, str(tmp_path))
    as_root = [] if os.getuid() == 0 else ['unshare', '--map-root-user']
    for word, program in ('client', 'vdelxcc'), ('daemon', 'vdelxcd'):
        done = run(*(as_root + ['chroot', str(tmp_path), python, '/vdelxc.pyz', word, '--version']))
        assert (done.stdout.split()[:1], done.stderr) == ([program], '')


# ---- clean --------------------------------------------------------------------------------------

def test_clean_removes_what_was_made_and_nothing_else(tree):
    before = files_in(tree)
    make('zipapp', cwd=tree)
    for directory in '.venv', '.venv-3.9', '.pytest_cache', 'tests/__pycache__':
        os.makedirs(os.path.join(tree, directory, 'sub'))
        write('', tree, directory, 'sub', 'file')
    write('', tree, '.coverage')
    assert len(files_in(tree)) == len(before) + 6
    make('clean', cwd=tree)
    assert files_in(tree) == before
