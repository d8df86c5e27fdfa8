"""What an errno means, for each place where it turns up: every line of the table."""

import errno

import pytest

# place -> (drop and count, end of the interface, network gone but may come back)
TABLE = {
    'TAP read': ('EAGAIN EINTR', 'EBADFD EBADF', ''),
    'TAP write': ('EIO ENOBUFS EAGAIN EINVAL ENOMEM', 'EBADFD EBADF', ''),
    'datagram': ('EAGAIN ENOBUFS ECONNREFUSED EHOSTUNREACH ENETUNREACH ENETDOWN EPERM EMSGSIZE',
                 'EBADF', ''),
    'local socket': ('EAGAIN ENOBUFS ENOMEM EMSGSIZE', 'EBADF',
                     'EPIPE ENOTCONN ECONNREFUSED ECONNRESET'),
}
LINES = [(place, fate, name) for place, fates in TABLE.items()
         for fate, names in zip(('drop', 'end', 'gone'), fates) for name in names.split()]


@pytest.fixture
def plug(vdelxcd):
    """A plug that does nothing but count."""
    return vdelxcd.Plug()


@pytest.mark.parametrize('place, fate, name', LINES)
def test_an_errno_has_the_fate_of_the_table(vdelxcd, plug, place, fate, name):
    error = OSError(getattr(errno, name), 'text')
    if fate == 'drop':
        plug.lost(place, error, 3)
        assert plug.drops == 3
        return
    with pytest.raises(vdelxcd.Ended if fate == 'end' else vdelxcd.PlugGone):
        plug.lost(place, error, 3)
    assert plug.drops == 0


def test_an_unknown_errno_ends_a_taps_reading_and_drops_a_frame_elsewhere(vdelxcd, plug):
    error = OSError(errno.EXFULL, 'text')
    with pytest.raises(vdelxcd.Ended):
        plug.lost('TAP read', error)
    for place in 'TAP write', 'datagram', 'local socket':
        plug.lost(place, error)
    assert plug.drops == 3


def test_no_errno_of_a_datagram_is_the_loss_of_the_network(vdelxcd):
    assert 'gone' not in vdelxcd.FATES['datagram'].values()
    assert 'gone' not in vdelxcd.FATES['TAP write'].values()


def test_every_place_is_in_the_table(vdelxcd):
    assert set(vdelxcd.FATES) == set(TABLE)


def test_a_plug_that_is_gone_tells_why(vdelxcd, plug):
    with pytest.raises(vdelxcd.PlugGone) as caught:
        plug.lost('local socket', OSError(errno.EPIPE, 'text'))
    assert caught.value.errno == errno.EPIPE
    assert str(caught.value) == 'Broken pipe'


def test_drops_of_one_plug_are_not_those_of_another(vdelxcd):
    one, other = vdelxcd.Plug(), vdelxcd.Plug()
    one.lost('datagram', BlockingIOError(errno.EAGAIN, 'text'))
    assert (one.drops, other.drops, vdelxcd.Plug.drops) == (1, 0, 0)
