"""The two scripts share no module; what both need to know, they know alike."""

import ast
import struct

from conftest import CLIENT, DAEMON

# names that both have and that mean something of their own in each
OWN = {'USAGE', 'HELP', 'SWAPPED_IOCTL', 'FLAGS', 'VALUED'}


def constants(module):
    """The constants of a module: name -> value, a Struct by its format."""
    return {name: value.format if isinstance(value, struct.Struct) else value
            for name, value in vars(module).items() if name.isupper() and name not in OWN}


def test_constants_of_both_scripts_agree(vdelxcc, vdelxcd):
    client, daemon = constants(vdelxcc), constants(vdelxcd)
    shared = set(client) & set(daemon)
    assert {'VERSION', 'SOCKET_NAME', 'TUNSETIFF', 'TUN_DEVICE', 'IFREQ', 'IFNAMSIZ', 'IFF_TAP',
            'IFF_NO_PI', 'SUN_PATH_MAX', 'VNL_MAX'} <= shared
    assert {name: client[name] for name in shared} == {name: daemon[name] for name in shared}


def test_the_architectures_with_other_ioctl_numbers_are_the_same():
    lists = []
    for path in CLIENT, DAEMON:
        with open(path, encoding='utf-8') as file:
            module = ast.parse(file.read())
        value = next(node.value for node in module.body if isinstance(node, ast.Assign)
                     and getattr(node.targets[0], 'id', '') == 'SWAPPED_IOCTL')
        lists.append(ast.literal_eval(value.args[0] if isinstance(value, ast.Call) else value))
    assert lists[0] == lists[1]


def test_functions_that_both_have_are_the_same_but_for_what_belongs_to_one():
    bodies = []
    for path in CLIENT, DAEMON:
        with open(path, encoding='utf-8') as file:
            module = ast.parse(file.read())
        bodies.append({node.name: ast.dump(node) for node in module.body
                       if isinstance(node, ast.FunctionDef)})
    client, daemon = bodies
    same = {name for name in set(client) & set(daemon) if client[name] == daemon[name]}
    assert 'split_options' in same
    assert set(client) & set(daemon) - same <= {'parse_arguments', 'main', 'say', 'reply', 'run'}


def test_an_interface_name_is_judged_alike(vdelxcc, vdelxcd):
    names = ['vde0', 'a' * 15, 'a' * 16, '', '.', '..', 'a/0', 'a:0', 'a%0', 'a 0', ' 0', '0',
             'a\n0', 'a\t0', '-0']
    for name in names:
        if name and name[-1] not in '0123456789':
            continue                        # a prefix, for the client
        answers = []
        for module, judge in (vdelxcc, vdelxcc.interface_names), (vdelxcd, vdelxcd.interface_name):
            try:
                judge(name)
                answers.append(True)
            except (ValueError, vdelxcc.Failure):
                answers.append(False)
        assert answers[0] == answers[1], name


def test_an_interface_name_made_of_a_prefix_is_one_that_the_daemon_takes(vdelxcc, vdelxcd):
    for prefix in 'vde', 'a' * 14, 'x-y_z', 'a.':
        for name in vdelxcc.interface_names(prefix):
            assert vdelxcd.interface_name(name) == name
