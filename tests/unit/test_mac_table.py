"""The MAC table: learns, ages, forgets, and never grows beyond its bound."""

import random

import pytest

A, B, C = 0x020000000001, 0x020000000002, 0x020000000003
PEER, OTHER = ('192.0.2.1', 1111), ('192.0.2.1', 2222)


@pytest.fixture
def table(vdelxcd):
    """A table whose entries last 10 seconds."""
    return vdelxcd.MacTable(10.0)


def test_an_unknown_mac_has_no_peer(table):
    assert table.find(A, 0.0) is None


def test_a_learned_mac_is_found(table):
    table.learn(A, PEER, 1.0)
    table.learn(B, OTHER, 1.0)
    assert (table.find(A, 1.0), table.find(B, 1.0), table.find(C, 1.0)) == (PEER, OTHER, None)


def test_a_mac_that_moved_has_its_last_peer(table):
    table.learn(A, PEER, 1.0)
    table.learn(A, OTHER, 2.0)
    assert table.find(A, 2.0) == OTHER
    assert len(table.entries) == 1


def test_a_mac_is_found_until_it_is_too_old(table):
    table.learn(A, PEER, 100.0)
    assert table.find(A, 109.9) == PEER
    assert table.find(A, 110.0) is None
    assert table.find(A, 1000.0) is None


def test_learning_again_makes_a_mac_young(table):
    table.learn(A, PEER, 100.0)
    table.learn(A, PEER, 109.0)
    assert table.find(A, 118.9) == PEER
    assert table.find(A, 119.0) is None


def test_a_peer_that_leaves_is_forgotten_with_all_its_macs(table):
    table.learn(A, PEER, 1.0)
    table.learn(B, OTHER, 1.0)
    table.learn(C, PEER, 1.0)
    table.forget(PEER)
    assert (table.find(A, 1.0), table.find(B, 1.0), table.find(C, 1.0)) == (None, OTHER, None)
    table.forget(PEER)
    table.learn(A, PEER, 2.0)
    assert table.find(A, 2.0) == PEER


def test_4096_macs_are_kept_and_the_least_recently_learned_goes_first(table):
    for mac in range(4096):
        table.learn(mac, PEER, 1.0)
    assert all(table.find(mac, 1.0) == PEER for mac in range(4096))
    table.learn(0, OTHER, 1.5)              # learned again: now the youngest
    table.learn(9999, PEER, 2.0)
    assert table.find(1, 2.0) is None
    assert table.find(0, 2.0) == OTHER
    assert table.find(2, 2.0) == table.find(9999, 2.0) == PEER
    assert len(table.entries) == 4096


def test_learning_a_known_mac_again_pushes_nobody_out(table):
    for mac in range(4096):
        table.learn(mac, PEER, 1.0)
    for _ in range(10):
        table.learn(4095, OTHER, 1.0)
    assert all(table.find(mac, 1.0) for mac in range(4096))


def test_a_flood_of_macs_does_not_make_the_table_larger(table):
    for mac in range(50000):
        table.learn(mac, (mac, mac), 1.0)
    assert sorted(table.entries) == list(range(50000 - 4096, 50000))


def test_a_goodbye_costs_what_its_sender_has_in_the_table_and_not_more(table, monkeypatch):
    for mac in range(4096):
        table.learn(mac, PEER, 1.0)
    entries = list(table.entries.items())
    monkeypatch.setattr(table, 'entries', None)         # nobody looks at it
    table.forget(OTHER)
    monkeypatch.undo()
    assert list(table.entries.items()) == entries


def test_peers_own_the_macs_that_have_them_and_nobody_else_is_kept(table):
    chance = random.Random(5)
    for _ in range(20000):
        peer = 'peer', chance.randrange(40)
        if chance.random() < 0.01:
            table.forget(peer)
        else:
            table.learn(chance.randrange(6000), peer, 1.0)
    owned = {}
    for mac, (peer, _) in table.entries.items():
        owned.setdefault(peer, set()).add(mac)
    assert owned == table.peers
