"""What the two scripts are made of: imports, size, rooms, docstrings, one manner for every plug."""

import ast
import os
import subprocess
import sys

import pytest

from conftest import CLIENT, DAEMON, ROOT

CLIENT_IMPORTS = set('os sys errno time signal getopt socket fcntl struct select array'.split())
DAEMON_IMPORTS = CLIENT_IMPORTS | set('stat pwd grp syslog resource gc json'.split())
LATE_IMPORTS = {CLIENT: {'signal'}, DAEMON: {'json'}}       # only where they are used
OPTIONAL_IMPORTS = {'resource'}             # in a try: python3-minimal has none
HEAVY = ['ctypes', 'threading', 'argparse', 'logging', 'subprocess', 'json', 'asyncio', 'typing',
         'ipaddress', 'pathlib', 'multiprocessing', 'getopt', 'gettext', 're']
CLIENT_LINES, DAEMON_LINES, COLUMNS = 910, 7830, 100

# the methods that the docstring of Plug describes, in the order in which every plug has them
CONTRACT = ['bare_option', 'normal_address', 'fill_in', 'real_address', 'fallbacks', 'open',
            '__init__', 'fds', 'recv', 'send', 'close', 'hung_up', 'mtu', 'fragments', 'tend']


def source(path):
    """The text of a file."""
    with open(path, encoding='utf-8') as file:
        return file.read()


def tree(path):
    """A script's syntax tree."""
    return ast.parse(source(path))


def imports(nodes):
    """The modules that these nodes and what is in them import."""
    found = set()
    for node in nodes:
        for each in ast.walk(node):
            if isinstance(each, ast.Import):
                found |= {alias.name for alias in each.names}
            elif isinstance(each, ast.ImportFrom):
                found.add('.' * each.level + (each.module or ''))
    return found


def python_files():
    """Every Python file of the project."""
    found = [CLIENT, DAEMON]
    for directory, _, names in os.walk(os.path.join(ROOT, 'tests')):
        found += [os.path.join(directory, name) for name in names if name.endswith('.py')]
    return found


def plug_classes(module):
    """The class definitions of Plug and of everything that is made from it, in order."""
    known, found = {'Plug'}, []
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if node.name in known or bases & known:
                known.add(node.name)
                found.append(node)
    return found


def rooms(path):
    """The rooms of a script, as its banners name them: [(name, first line)]."""
    lines = source(path).split('\n')
    rule = '# ' + '=' * 98
    return [(lines[index + 1][2:], index + 1) for index in range(len(lines) - 2)
            if lines[index] == lines[index + 2] == rule]


@pytest.mark.parametrize('path, allowed', [(CLIENT, CLIENT_IMPORTS), (DAEMON, DAEMON_IMPORTS)])
def test_a_script_imports_only_what_the_frame_allows(path, allowed):
    body = tree(path).body
    assert imports(body) <= allowed
    top = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not imports(top) & LATE_IMPORTS[path]
    late = imports(body) - imports(top)
    assert late <= LATE_IMPORTS[path] | OPTIONAL_IMPORTS
    assert not imports(top) & OPTIONAL_IMPORTS
    names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    assert not names & {'__import__', 'eval', 'exec', 'compile', 'importlib'}


@pytest.mark.parametrize('path', [CLIENT, DAEMON])
def test_an_import_is_used(path):
    module = tree(path)
    used = {node.id for node in ast.walk(module) if isinstance(node, ast.Name)}
    for node in ast.walk(module):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            assert {alias.asname or alias.name for alias in node.names} <= used


@pytest.mark.parametrize('path', [CLIENT, DAEMON])
def test_a_script_brings_no_heavy_module_along(path):
    """Nor does the client bring what socket imports for others: a quarter of its start-up time."""
    code = ('import sys; sys.argv = ["x"]; sys.dont_write_bytecode = True\n'
            'sys.path.insert(0, %r); import %s; print(*sys.modules)'
            % (ROOT, os.path.basename(path)[:-3]))
    loaded = subprocess.check_output([sys.executable, '-I', '-S', '-c', code])
    light = {'enum', 'selectors', 'array', 'collections'} if path == CLIENT else set()
    assert not set(loaded.decode().split()) & (light | set(HEAVY))


@pytest.mark.parametrize('spoil, enum', [('', False), ('del vdelxcc.Absent._convert_\n'
                                                        'del vdelxcc.Absent._convert', True)])
def test_the_client_imports_a_module_without_enum_or_as_ever(spoil, enum):
    """It has to work with either: the second is a Python that does not like the first."""
    code = ('import sys; sys.argv = ["x"]; sys.dont_write_bytecode = True\n'
            'sys.path.insert(0, %r); import vdelxcc\n'
            '%s\n'
            'sys.modules.pop("signal", None)\n'
            'with vdelxcc.Absent():\n'
            '    import signal\n'
            'import signal\n'
            'old = signal.signal(15, signal.default_int_handler)\n'
            'assert old == signal.SIG_DFL and signal.getsignal(15) == signal.default_int_handler\n'
            'print("enum" in sys.modules, "selectors" in sys.modules)\n'
            'import enum, selectors; selectors.DefaultSelector\n' % (ROOT, spoil))
    said = subprocess.check_output([sys.executable, '-I', '-S', '-c', code])
    assert said.decode().split() == [str(enum), 'False']


@pytest.mark.parametrize('path, most', [(CLIENT, CLIENT_LINES), (DAEMON, DAEMON_LINES)])
def test_a_script_is_short_enough_to_be_read_before_it_is_trusted(path, most):
    assert len(source(path).splitlines()) <= most


def test_a_line_has_100_columns_at_most_and_no_blanks_at_its_end():
    faults = []
    for path in python_files():
        for index, line in enumerate(source(path).split('\n'), 1):
            if len(line) > COLUMNS or line != line.rstrip() or '\t' in line:
                faults.append('%s:%d' % (os.path.relpath(path, ROOT), index))
    assert faults == []


def test_every_python_file_says_what_it_is_for():
    assert [path for path in python_files() if not ast.get_docstring(tree(path))] == []


@pytest.mark.parametrize('path', [CLIENT, DAEMON])
def test_every_function_and_class_has_a_docstring(path):
    module = tree(path)
    plugs = plug_classes(module)
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    faults = []

    def told(name, node):
        """Is a method of this name told about in one of the classes that this one is made from?"""
        bases = [classes[base.id] for base in node.bases if getattr(base, 'id', '') in classes]
        return any(told(name, base) or any(
            getattr(each, 'name', '') == name and ast.get_docstring(each) for each in base.body)
                   for base in bases)

    def look(node, prefix, exempt):
        """Functions inside functions are told about by the outer one."""
        for each in node.body:
            if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
                if not (ast.get_docstring(each) or each.name in exempt
                        or isinstance(node, ast.ClassDef) and told(each.name, node)):
                    faults.append('%s%s, line %d' % (prefix, each.name, each.lineno))
            if isinstance(each, ast.ClassDef):
                look(each, each.name + '.', CONTRACT if each in plugs else ['__init__'])
    look(module, '', [])
    assert faults == []


@pytest.mark.parametrize('path', [CLIENT, DAEMON])
def test_the_docstring_names_the_rooms_in_their_order(path):
    text = ' '.join(ast.get_docstring(tree(path)).split())
    listed = text.split('uses only those above it): ')[1].split('.')[0]
    separator = '; ' if ';' in listed else ', '
    assert [room.lower() for room in listed.split(separator)] == [
        name.lower() for name, _ in rooms(path)]


@pytest.mark.parametrize('path', [CLIENT, DAEMON])
def test_a_room_uses_only_rooms_above_it(path):
    module, banners = tree(path), rooms(path)

    def room_of(line):
        """The number of the room in which a line stands."""
        return sum(1 for _, first in banners if first < line)
    homes = {}
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            homes[node.name] = node.lineno
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                homes.update((name.id, node.lineno) for name in ast.walk(target)
                             if isinstance(name, ast.Name))
    used = []
    for node in module.body:
        local = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
        if not isinstance(node, ast.Assign):
            local |= {each.id for each in ast.walk(node)
                      if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        used += [(each.lineno, each.id) for each in ast.walk(node) if isinstance(each, ast.Name)
                 and isinstance(each.ctx, ast.Load) and each.id in set(homes) - local]
    assert len(used) > 50
    assert [(line, name) for line, name in used if room_of(homes[name]) > room_of(line)] == []


def test_every_plug_has_the_methods_of_the_contract_in_the_same_order():
    plugs = plug_classes(tree(DAEMON))
    assert len(plugs) > 3
    faults = []
    for plug in plugs:
        methods = [node.name for node in plug.body if isinstance(node, ast.FunctionDef)]
        ours = [name for name in methods if name in CONTRACT]
        if ours != [name for name in CONTRACT if name in ours]:
            faults.append((plug.name, ours))
    assert faults == []


def test_only_the_registry_knows_the_schemes():
    faults = []
    for node in ast.walk(tree(DAEMON)):
        if isinstance(node, ast.Compare):
            sides = [node.left] + node.comparators
            names = {getattr(side, 'id', getattr(side, 'attr', None)) for side in sides}
            texts = [side for side in sides if is_text(side)]
            if 'scheme' in names and texts:
                faults.append(node.lineno)
    assert faults == []


def is_text(node):
    """Is this a str, or a tuple, list or set with one in it?"""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return False
    return isinstance(value, str) or (isinstance(value, (tuple, list, set))
                                      and any(isinstance(each, str) for each in value))


def test_the_registry_has_plugs_with_a_docstring_that_names_their_scheme(vdelxcd):
    for scheme, plug in vdelxcd.PLUGS.items():
        assert issubclass(plug, vdelxcd.Plug)
        assert not set(scheme) - vdelxcd.SCHEME_LETTERS
        assert scheme + '://' in plug.__doc__
        assert set(plug.DEFAULTS) | set(plug.IDENTITY) <= set(plug.OPTIONS)
        assert plug.STYLE in ('', '/', '[', '/[')
        assert plug.STYLE or not plug.OPTIONS


def test_the_top_level_holds_only_what_the_frame_allows():
    if not os.path.exists(os.path.join(ROOT, '.git')):
        pytest.skip('not a git checkout')
    names = subprocess.check_output(['git', '-c', 'safe.directory=*', 'ls-files', '-z'], cwd=ROOT)
    top = {name.split('/')[0] for name in names.decode().split('\0') if name}
    extra = {name for name in top if not name.startswith('.')}
    assert extra - {'vdelxcd.py', 'vdelxcc.py', 'Makefile', 'tests', 'man', 'README.md'} == set()
    assert {'vdelxcd.py', 'vdelxcc.py', 'tests'} <= top
