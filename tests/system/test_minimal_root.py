"""Both scripts in root file systems that hold only python3-minimal, its libraries and libc."""

import os
import re
import shutil
import socket
import subprocess

import pytest

from conftest import CLIENT, DAEMON, missing, processes, require, wait_until

PYTHON_THERE = '/usr/bin/python3'


def output(*argv):
    return subprocess.check_output(argv, universal_newlines=True, stderr=subprocess.DEVNULL)


def copy(path, root):
    """Copy a file, and what a link points to, to the same place under root."""
    target = root + path
    if os.path.lexists(target) or not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        copy(os.path.join(os.path.dirname(path), os.readlink(path)), root)
    elif os.path.isfile(path):
        shutil.copy(path, target)


def make_root(root):
    """python3-minimal and the packages of its interpreter, and the libraries that ldd names."""
    for name in os.listdir('/'):                # /lib -> usr/lib and the like
        if os.path.islink('/' + name):
            os.makedirs(os.path.join(root, os.readlink('/' + name).lstrip('/')), exist_ok=True)
            os.symlink(os.readlink('/' + name), os.path.join(root, name))
    interpreter = os.path.basename(os.path.realpath(PYTHON_THERE)) + '-minimal'
    for package in 'python3-minimal', interpreter, 'lib' + interpreter:
        for path in output('dpkg', '-L', package).split('\n'):
            if not path.startswith(('/usr/share', '/var')):
                copy(path, root)
    for path in re.findall(r'/\S+', output('ldd', os.path.realpath(PYTHON_THERE))):
        copy(path, root)
    for name in 'vde', 'dev/net', 'tmp':
        os.makedirs(os.path.join(root, name))


@pytest.fixture(scope='module')
def minimal_root(tmp_path_factory):
    """The path of such a root file system."""
    require('dpkg', 'unshare', 'chroot', 'ldd')
    if subprocess.call(['dpkg', '-L', 'python3-minimal'], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL):
        missing('python3-minimal', 'python3-minimal')
    root = str(tmp_path_factory.mktemp('minimal'))
    make_root(root)
    yield root
    shutil.rmtree(root)


def inside(root, directory, *argv, devices=('net/tun',)):
    """A command line that runs argv in the root, which sees directory as /vde."""
    script = ['mount --bind %s %s/vde' % (directory, root), 'mount -t tmpfs none %s/dev' % root,
              'mkdir %s/dev/net' % root]
    for device in devices:
        script.append('touch {0}/dev/{1}; mount --bind /dev/{1} {0}/dev/{1}'.format(root, device))
    script.append('exec chroot %s "$@"' % root)
    return ['unshare', '--mount', 'sh', '-ec', '\n'.join(script), 'sh'] + list(argv)


def test_the_root_holds_little_more_than_the_interpreter(minimal_root, tmp_path):
    for module, there in ('socket', True), ('json', False), ('ctypes', False):
        status = subprocess.call(inside(minimal_root, tmp_path, PYTHON_THERE, '-c',
                                        'import ' + module), stderr=subprocess.DEVNULL)
        assert (status == 0) == there, module
    assert not os.path.exists(minimal_root + '/bin/sh')


def test_the_client_needs_no_more(minimal_root, pair):
    """There is no program in the root but the interpreter, and the interface is ready to use."""
    daemon, a, b = pair
    shutil.copy(CLIENT, minimal_root)
    for container, address in (a, '10.0.0.1/24'), (b, '10.0.0.2/24'):
        done = container.run(*inside(minimal_root, daemon.directory, PYTHON_THERE,
                                     '/vdelxcc.py', '-v', '-a', address, 'vxvde://'))
        assert done.stdout == 'vde0\n' and done.stderr.endswith('vdelxcc: vde0: up\n')
    a.ping('10.0.0.2')


def test_the_client_runs_there_from_standard_input(minimal_root, pair):
    daemon, container, _ = pair
    with open(CLIENT) as script:
        done = container.run(*inside(minimal_root, daemon.directory, PYTHON_THERE, '-', '-v',
                                     'null://'), stdin=script)
    assert done.stdout == 'vde0\n'


def test_the_client_fails_there_in_one_line(minimal_root, pair):
    daemon, container, _ = pair
    shutil.copy(CLIENT, minimal_root)
    for argv, devices, begin in (
            (['-s', 'no-such'], ['net/tun'], 'connect: '),
            (['null://'], [], 'interface definition: '),
            (['nonsense://'], ['net/tun'], 'vdelxcd: ')):
        done = container.run(*inside(minimal_root, daemon.directory, PYTHON_THERE, '/vdelxcc.py',
                                     *argv, devices=devices), check=False)
        assert (done.returncode, done.stdout) == (1, '')
        assert done.stderr.startswith(begin) and done.stderr.count('\n') == 1


class MinimalDaemon:
    """vdelxcd.py in the root, its socket in directory; close() ends it and its sessions."""

    def __init__(self, host, root, directory):
        self.socket = os.path.join(directory, 'vdelxcs')
        self.script = '/%d-%s.py' % (os.getpid(), os.path.basename(directory))
        shutil.copy(DAEMON, root + self.script)
        self.process = host.popen(*inside(root, directory, PYTHON_THERE, self.script, '-v',
                                          '/vde/vdelxcs', devices=('net/tun', 'null')),
                                  stderr=subprocess.PIPE, universal_newlines=True)
        wait_until(lambda: self.process.poll() is not None or self.listens())
        assert self.process.poll() is None, self.process.stderr.read()

    def listens(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self.socket)
                return True
            except OSError:
                return False

    def close(self):
        def ended():
            for pid in processes(self.script):
                os.kill(pid, 9)
            return not processes(self.script)
        wait_until(ended)
        self.process.wait(10)
        self.process.stderr.close()


def test_the_daemon_needs_no_more_but_dev_null(minimal_root, host, new_container, tmp_path_factory,
                                               closing):
    """Without /proc too: it does without names for its processes."""
    directory = str(tmp_path_factory.mktemp('vde'))
    daemon = closing(MinimalDaemon(host, minimal_root, directory))
    a, b = new_container('a'), new_container('b')
    for container, address in (a, '10.0.0.1/24'), (b, '10.0.0.2/24'):
        container.client('-s', daemon.socket, 'vxvde://')
        container.up('vde0', address)
    a.ping('10.0.0.2')
    daemon.process.terminate()
    assert daemon.process.wait(10) == 0
    assert os.listdir(directory) == []
    a.ping('10.0.0.2')
    log = os.read(daemon.process.stderr.fileno(), 65536).decode()
    assert log.count('open interface: vxvde:// (vde0') == 2 and 'Traceback' not in log
