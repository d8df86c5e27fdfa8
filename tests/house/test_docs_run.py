"""The manual pages and the README, held against the scripts: tables compared, examples run."""

import errno
import os
import re
import shlex
import socket
import subprocess

import pytest

from conftest import CLIENT, DAEMON, ROOT, Daemon, load, processes, require, wait_until

DOCUMENTS = ['README.md', 'man/vdelxcc.1', 'man/vdelxcd.1', 'man/vnl.7']
SCRIPTS = {'vdelxcc': CLIENT, 'vdelxcd': DAEMON}


def read(name):
    """A file of the project."""
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        return file.read()


def rendered(name):
    """A manual page as plain text, blanks and line breaks made one blank."""
    require('mandoc')
    done = subprocess.run(['mandoc', '-Tascii', os.path.join(ROOT, name)], check=True,
                          stdout=subprocess.PIPE, universal_newlines=True)
    return ' '.join(re.sub('.\b', '', done.stdout).split())


def unescape(text):
    """The text that an mdoc argument stands for."""
    return text.replace('\\(dq', '"').replace('\\&', '').replace('\\e', '\\')


# ---- the manual pages ---------------------------------------------------------------------------

@pytest.mark.parametrize('name', DOCUMENTS)
def test_lines_of_the_documentation_are_at_most_100_columns_long(name):
    long = [line for line in read(name).split('\n') if len(line) > 100 and line[:1] != '|']
    assert long == []


def options_of_help(program):
    """{(short or '', long)} of --help."""
    help_text = load(SCRIPTS[program]).HELP
    return set(re.findall(r'^  (-\w)?(?:, |    )(--[a-z-]+)', help_text, re.M))


@pytest.mark.parametrize('program', sorted(SCRIPTS))
def test_the_readme_lists_the_options_of_help_and_no_others(program):
    part = read('README.md').split('`%s.py [OPTION]' % program)[1].split('\n\n')[1]
    listed = set(re.findall(r'^\| (?:`(-\w)`, )?`(--[a-z-]+)` \|', part, re.M))
    assert listed == options_of_help(program)


def test_every_error_with_advice_is_among_the_clients_diagnostics(vdelxcc):
    text = rendered('man/vdelxcc.1')
    wanted = [('connect', number) for number in list(vdelxcc.CONNECT_ADVICE)
              + [errno.ENOENT, errno.ENAMETOOLONG]]
    wanted += [('interface definition', number) for number in list(vdelxcc.OPEN_ADVICE)
               + list(vdelxcc.SETIFF_ADVICE) + list(vdelxcc.TAKEN_ADVICE) + [errno.ENAMETOOLONG]]
    wanted += [('interface settings', number) for number in vdelxcc.SETTING_ADVICE]
    wanted += [('interface removal', number) for number in vdelxcc.DELETE_ADVICE]
    wanted += [('vdelxcd', number) for number in list(vdelxcc.REFUSAL_ADVICE)
               + [errno.ECONNRESET, errno.EPROTO]]
    lacking = ['%s: %s' % (doing, os.strerror(number)) for doing, number in wanted
               if '%s: %s' % (doing, os.strerror(number)) not in text]
    assert lacking == []


def rule_examples():
    """[(title, rules, [(VNL, verdict)])] of vdelxcd(1)."""
    found = []
    for part in re.split(r'^\.Ss ', read('man/vdelxcd.1'), flags=re.M):
        title = part.split('\n')[0]
        if title.startswith('Rules: '):
            rules = re.search(r'^\.Bd -literal.*?\n(.*?)^\.Ed', part, re.S | re.M).group(1)
            verdicts = re.findall(r'^\.It (?:Li )?(\S+) Ta (allowed|refused)$', part, re.M)
            rows = part.count(' Ta ') - 1       # the heading is none
            assert rows == len(verdicts), 'a row of %s is not understood' % title
            found.append((title, rules, verdicts))
    return found


def test_the_page_has_the_rule_examples():
    assert len(rule_examples()) >= 4
    assert sum(len(verdicts) for _, _, verdicts in rule_examples()) >= 25


@pytest.mark.parametrize('title, rules, verdicts', rule_examples(),
                         ids=[title for title, _, _ in rule_examples()])
def test_the_rule_examples_of_the_page_are_judged_as_it_says(vdelxcd, tmp_path, title, rules,
                                                             verdicts):
    file = tmp_path / 'rules'
    file.write_text(rules)
    judge, _ = vdelxcd.read_rules(str(file), None, vdelxcd.read_vnl)
    judged = []
    for vnl, _ in verdicts:
        try:
            vdelxcd.choose_network('' if vnl == '(none)' else vnl, judge)
            judged.append((vnl, 'allowed'))
        except vdelxcd.Failure as refusal:
            assert refusal.errno in (errno.EACCES, errno.EPROTONOSUPPORT), refusal
            judged.append((vnl, 'refused'))
    assert judged == verdicts


def test_the_rules_of_the_readme_mean_what_their_comments_say(vdelxcd, tmp_path):
    rules = next(block for block in re.findall(r'^```\n(.*?)^```', read('README.md'), re.S | re.M)
                 if 'pfxallow' in block)
    file = tmp_path / 'rules'
    file.write_text(rules)
    judge, warnings = vdelxcd.read_rules(str(file), None, vdelxcd.read_vnl)
    assert warnings == []
    assert vdelxcd.choose_network('', judge).text == 'vxvde://234.0.0.1'
    for allowed in 'vxvde://239.0.0.8/ttl=2', 'vlan://3{vxvde://}', 'tap://tap0':
        vdelxcd.choose_network(allowed, judge)
    for refused in ('vxvde://239.0.0.7/ttl=2', 'vlan://3{vxvde://239.0.0.7}', 'tap://tap1',
                    'cmd://ls'):
        with pytest.raises(vdelxcd.Failure) as refusal:
            vdelxcd.choose_network(refused, judge)
        assert refusal.value.errno == errno.EACCES


def test_the_page_and_the_readme_promise_the_same_figures():
    page = read('man/vdelxcd.1').split('\nFigures, each of them')[1].split('\n.El')[0]
    table = read('README.md').split('\n### What is promised\n')[1].split('\n### ')[0]
    seen = re.findall(r'\((\d[^)]*|none)\)', page)
    assert len(seen) == 12
    lacking = [number for text in seen for number in re.findall(r'[\d.]+|none', text)
               if not re.search(r'(?<![\d.])%s(?![\d.]*\d)' % re.escape(number), table)]
    assert lacking == []


# ---- vnl(7) -------------------------------------------------------------------------------------

def scheme_sections():
    """{title: source} of the sections about schemes."""
    text = read('man/vnl.7').split('\n.Sh SCHEMES\n')[1].split('\n.Sh ')[0] + '\n'
    return {part.split('\n')[0]: part for part in re.split(r'^\.Ss ', text, flags=re.M)[1:]}


def section_of(scheme):
    """The section about a scheme."""
    found = [part for title, part in scheme_sections().items()
             if re.search(r'(?:^|[ ,])%s://' % scheme, title)]
    assert len(found) == 1, 'sections about %s://: %d' % (scheme, len(found))
    return found[0]


def schemes():
    return sorted(load(DAEMON).PLUGS)


@pytest.mark.parametrize('scheme', schemes())
def test_every_scheme_has_a_section_with_its_options_in_their_order(vdelxcd, scheme):
    plug = vdelxcd.PLUGS[scheme]
    listed, texts = [], {}
    for item in re.split(r'^\.It ', section_of(scheme), flags=re.M)[1:]:
        heading = item.split('\n')[0]
        if heading.startswith('Cm '):
            names = re.findall(r'(?:^Cm|, Cm|,) (\w+)', heading)
            listed += names
            texts.update((name, ' '.join(item.split())) for name in names)
    assert listed == list(plug.OPTIONS)
    for name, value in plug.DEFAULTS.items():
        assert 'default %s' % value in texts[name], 'the default of %s is %s' % (name, value)


def test_no_section_is_about_a_scheme_that_is_not_there(vdelxcd):
    named = {scheme for title in scheme_sections() for scheme in re.findall(r'(\w+)://', title)}
    assert named == set(vdelxcd.PLUGS)


@pytest.mark.parametrize('scheme', schemes())
def test_the_examples_of_a_scheme_are_vnls_of_it(vdelxcd, scheme):
    examples = [unescape(line) for line in re.findall(r'^\.Dl (.*)', section_of(scheme), re.M)]
    vnls = [vdelxcd.read_vnl(example) for example in examples]
    assert vnls and all(vnl.scheme in vdelxcd.PLUGS for vnl in vnls)
    assert scheme in {vnl.scheme for vnl in vnls} or scheme in ('multi', 'bonding')


def test_the_networks_of_the_readme_are_all_schemes_and_vnls(vdelxcd):
    part = read('README.md').split('\n## Networks\n\n')[1].split('\n\n')[0]
    named = set()
    for row in part.split('\n')[2:]:
        for vnl in re.findall(r'`([^`]+)`', row.split(' | ')[0]):
            if '://' in vnl:
                named.add(vdelxcd.read_vnl(vnl).scheme)
    assert named == set(vdelxcd.PLUGS)


def test_the_pairs_of_the_page_are_the_same_network(vdelxcd):
    rows = re.findall(r'^\.It Li (\S+) Ta Li (\S+)$', read('man/vnl.7'), re.M)
    assert len(rows) >= 8
    for written, canonical in rows:
        assert vdelxcd.read_vnl(unescape(written)).text == unescape(canonical)
        assert vdelxcd.read_vnl(unescape(canonical)).text == unescape(canonical)


# ---- examples that are run ----------------------------------------------------------------------

def readme_commands(title, prompt):
    """The commands after a prompt in one section of the README."""
    part = re.split(r'^#+ ', read('README.md').split('%s\n' % title, 1)[1], flags=re.M)[0]
    return re.findall(r'^\(%s\)\$ (.*)' % prompt, part, re.M)


def test_the_plain_namespaces_of_the_readme_work_from_start_to_end(host, tmp_path):
    commands = readme_commands('### Plain namespaces', 'host')
    commands = commands[:commands.index('kill $(cat /run/vdelxcd.pid)') + 1]
    assert len(commands) == 12
    shared = str(tmp_path / 'vde')
    script = ['set -e', 'cd ' + ROOT, 'mount -t tmpfs tmpfs /run', 'mkdir -p /run/netns']
    script += [line.replace('/tmp/vde', shared) for line in commands]
    done = host.run('unshare', '--mount', 'sh', '-c', '\n'.join(script), check=False)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert '1 received' in done.stdout
        wait_until(lambda: not processes(shared), what='daemon and sessions end')
    finally:
        for pid in processes(shared):
            os.kill(pid, 9)


def test_the_readme_serves_a_container_from_the_host_and_a_user_namespace(host, new_container,
                                                                          new_daemon):
    daemon, container = new_daemon(host), new_container()
    command, = readme_commands('## Other containers', 'host')
    command = command.replace('/tmp/vde/vdelxcs', daemon.socket)
    host.run('sh', '-c', command.replace(' PID ', ' %d ' % container.holder.pid), cwd=ROOT)
    container.ip('link show vde0')
    unshare = readme_commands('### Plain namespaces', 'host')[-1]
    inside, = readme_commands('### Plain namespaces', 'container')
    assert unshare == 'unshare -rn' and ' 10.0.0.3/24 ' in inside
    inside = inside.replace('/tmp/vde/vdelxcs', daemon.socket)
    host.run(*unshare.split(), 'sh', '-c', inside + ' && ping -c 1 10.0.0.1', cwd=ROOT)


def test_the_commands_of_the_readme_make_an_interface_ready_to_use(host, new_container, new_daemon):
    daemon = new_daemon(host)
    environment = dict(os.environ, VDELXC_PATH=daemon.directory)
    commands = readme_commands('## An interface ready to use', 'container')
    assert len(commands) == 2
    for command in commands:
        container = new_container()
        program, *words = command.split()
        assert program == 'vdelxcc.py'
        container.client(*words, env=environment)
        assert ' 10.0.0.1/24 ' in container.ip('-br -4 addr show up dev vde0').stdout


def test_the_readme_shows_what_list_prints_and_its_commands_work(host, new_container, new_daemon):
    require('tcpdump')
    daemon, container = new_daemon(host), new_container()
    container.client('-s', daemon.socket, '-i', 'lan0', 'null://')
    title = '## Seeing what is there'
    show, watch, close = readme_commands(title, 'host')
    shown = read('README.md').split(title)[1].split(show + '\n')[1].split('```')[0].splitlines()
    printed = host.run('sh', '-c', 'cd %s; %s' % (ROOT, show)).stdout.splitlines()
    assert printed[0].split()[:9] == shown[0].split()[:9] and len(printed) == 2
    for line in printed[1:] + shown[1:]:
        assert re.match(r' *\d+ +0 +\w+ +up +[\d-]+ [\d:]+ +\d+ +0 +0 +net:\[\d+\][\d ]*$', line)
    watcher = host.popen('sh', '-c', 'cd %s; %s' % (ROOT, watch + ' -c 1'), stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL)
    container.up('lan0', '10.0.0.1/24')

    def seen():
        container.run('ping', '-c', 1, '-W', '0.1', '10.0.0.2', check=False)
        return watcher.poll() is not None
    wait_until(seen)
    said = watcher.communicate()[0]
    assert watcher.returncode == 0 and said.count(b'\n') == 1, said
    host.run('sh', '-c', 'cd %s; %s' % (ROOT, close))
    assert 'lan0' not in container.interfaces()


def client_examples():
    """The words of the example commands of vdelxcc(1), without the program."""
    lines = re.findall(r'^\.Dl \$ vdelxcc ?(.*)', read('man/vdelxcc.1'), re.M)
    return [line.split() for line in lines]


def test_the_examples_of_the_clients_page_work(host, new_container, new_daemon, tmp_path):
    rules = tmp_path / 'rules'
    rules.write_text('default vxvde://239.9.9.9\npfxallow\n')
    container, daemon = new_container(), new_daemon(host, '-v', '-f', rules)
    environment = dict(os.environ, VDELXC_PATH='/nonexistent:' + daemon.directory)
    assert len(client_examples()) == 6
    for words in client_examples():
        words = [word.replace('/vde/vdelxcs', daemon.socket) for word in words]
        before = container.interfaces()
        done = container.client(*words, env=environment)
        made = container.interfaces() - before
        assert len(made) == 1
        assert done.stdout == (made.pop() + '\n' if '-v' in words else '')
    assert container.interfaces() == {'lo', 'vde0', 'vde1', 'vde2', 'lan0', 'eth0', 'vde3'}
    for vnl in 'vxvde://', 'vxvde://239.9.9.9', 'vxvde://239.1.2.3/vni=7', 'null://':
        wait_until(lambda: 'open interface: %s (' % vnl in daemon.log(), what=vnl + ' in the log')


def test_the_examples_of_the_daemons_page_are_accepted(vdelxcd):
    lines = re.findall(r'^\.Dl # vdelxcd (.*)', read('man/vdelxcd.1'), re.M)
    assert len(lines) == 3
    for line in lines:
        options = vdelxcd.parse_arguments(line.split())
        assert options['socket'] == '/tmp/vde/vdelxcs'
        if options['vnl']:
            vdelxcd.read_vnl(options['vnl'])


def test_the_page_shows_what_the_examining_options_print(vdelxcd, capsys, tmp_path):
    file = tmp_path / 'rules'
    file.write_text(next(rules for title, rules, _ in rule_examples()
                         if title == 'Rules: nested networks'))
    shown = re.search(r'^(# vdelxcd --check-config.*?)^\.Ed', read('man/vdelxcd.1'), re.S | re.M)
    commands = re.findall(r'^# vdelxcd (.*)\n((?:[^#].*\n)+)', shown.group(1), re.M)
    assert len(commands) == 2
    for command, output in commands:
        words = [word.replace('/etc/vdelxcd.rules', str(file)) for word in shlex.split(command)]
        assert vdelxcd.main(words) == 0
        assert tuple(capsys.readouterr()) == (output.replace('/etc/vdelxcd.rules', str(file)), '')


def test_the_scheme_of_the_readme_is_one_class_and_one_line(host, new_container, closing, tmp_path):
    plug, line = re.findall(r'^```python\n(.*?)^```', read('README.md'), re.S | re.M)
    source = read('vdelxcd.py')
    place = source.index('# Every scheme;')
    table = source[place:].replace('PLUGS = {\n', 'PLUGS = {\n' + line, 1)
    source = source[:place] + plug + '\n\n' + table
    script = tmp_path / 'vdelxcd.py'
    script.write_text(source)
    daemon = Daemon(host, tmp_path, '-v', start=False)
    daemon.argv[1] = str(script)
    closing(daemon).start()
    container, path = new_container(), str(tmp_path / 'listener')
    refused = container.client('-s', daemon.socket, 'unix://' + path, check=False)
    assert refused.stderr.startswith('vdelxcd: No such file or directory')
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(10)
        container.client('-s', daemon.socket, 'unix://' + path)
        with listener.accept()[0] as peer:
            peer.settimeout(10)
            container.ip('link set vde0 address 02:00:00:00:00:01')
            container.up('vde0', '10.0.0.1/24')
            container.popen('ping', '-n', '-c', '1', '10.0.0.2', stdout=subprocess.DEVNULL)
            asked = b'\xff' * 6 + bytes([2, 0, 0, 0, 0, 1]) + b'\x08\x06'
            while not peer.recv(65536).startswith(asked):
                pass


def test_make_has_the_targets_that_the_readme_names():
    path = os.path.join(ROOT, 'Makefile')
    if not os.path.exists(path):
        pytest.skip('no Makefile')
    with open(path) as file:
        targets = set(re.findall(r'^([a-z-]+):', file.read(), re.M))
    named = set(re.findall(r'(?:`|\$ )make ([a-z-]+)', read('README.md')))
    assert named and named <= targets


def test_the_paths_of_the_readme_exist():
    part = read('README.md').split('\n## What is where\n')[1]
    named = [name for name in re.findall(r'^\| `([^`]+)`', part, re.M) if name != 'Makefile']
    assert named and [name for name in named if not os.path.exists(os.path.join(ROOT, name))] == []
