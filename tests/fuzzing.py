"""What the fuzzers have in common: a seed, a budget, and ways to spoil bytes.

Each test draws from its own sequence, the same at every run. To look further, and for longer:

    VDELXC_FUZZ_SEED=7 VDELXC_FUZZ_TIMES=1000 make test ARGS='-k fuzz'
"""

import os
import random

import pytest

SEED = int(os.environ.get('VDELXC_FUZZ_SEED', '1'))
TIMES = float(os.environ.get('VDELXC_FUZZ_TIMES', '1'))
ODD_BYTES = b'\x00\x01\x07\x08\x09\x0f\x10\x7f\x80\xfe\xff'


class Fuzz:
    """chance is a random.Random; rounds() says how often."""

    def __init__(self, name):
        self.name = name
        self.chance = random.Random('%s %d' % (name, SEED))

    def rounds(self, count):
        """The numbers of the rounds: count of them, or as many more as the environment asks for."""
        return range(int(count * TIMES) or 1)

    def noise(self, size):
        """Random bytes."""
        return self.chance.getrandbits(8 * size).to_bytes(size, 'big') if size else b''

    def spoil(self, data, most=3):
        """The bytes with a few faults: changed, left out, put in, repeated, cut off."""
        data, chance = bytearray(data), self.chance
        for _ in range(chance.randint(1, most)):
            place = chance.randrange(len(data) + 1)
            way = chance.randrange(7)
            if way == 0:
                del data[place:]
            elif way == 1:
                del data[place:place + chance.randint(1, 8)]
            elif way == 2:
                data[place:place] = self.noise(chance.randint(1, 8))
            elif way == 3:
                data[place:place] = data[chance.randrange(len(data) + 1):][:chance.randint(1, 64)]
            elif place < len(data):
                if way == 4:
                    data[place] ^= 1 << chance.randrange(8)
                elif way == 5:
                    data[place] = chance.choice(ODD_BYTES)
                else:
                    data[place:place + 2] = self.noise(2)
        return bytes(data)

    def pieces(self, data, most=8):
        """The bytes in up to so many pieces, none of them empty."""
        count = min(self.chance.randrange(most), max(len(data) - 1, 0))
        cuts = sorted(self.chance.sample(range(1, len(data)), count)) if count else []
        return [data[start:end] for start, end in zip([0] + cuts, cuts + [len(data)])]


@pytest.fixture
def fuzz(request):
    """The Fuzz of a test; what is printed shows when the test fails."""
    print('VDELXC_FUZZ_SEED=%d VDELXC_FUZZ_TIMES=%g' % (SEED, TIMES))
    return Fuzz(request.node.name)
