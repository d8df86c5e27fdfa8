"""A LAN full of enemies: what anybody who can send a datagram can do to the interfaces."""

import os
import signal
import subprocess
import sys

import pytest

from aftermath import Baseline, new_bystanders                                  # noqa: F401
from conftest import processes, wait_until

SUSPECT = """
input()
%s
print('done', flush=True)
%s
"""


# ---- the measure itself -------------------------------------------------------------------------

@pytest.mark.parametrize('crime, rest, word', [
    ('', 'while True: pass', 'processor'),
    ('held = [open("/dev/null") for _ in range(3)]', 'input()', 'descriptors'),
    ('import os; os.fork() or os._exit(0)', 'input()', 'zombies'),
    ('import os; os.fork()', 'input()', 'processes')], ids=['cpu', 'files', 'zombie', 'fork'])
def test_the_baseline_finds_what_an_attack_leaves_behind(closing, tmp_path, crime, rest, word):
    class Suspect:
        """A process that passes for a daemon."""
        process = subprocess.Popen(
            [sys.executable, '-c', SUSPECT % (crime, rest), str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def pids(self):
            return processes(tmp_path)

        def close(self):
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)
            self.process.communicate()
    suspect = closing(Suspect())
    wait_until(suspect.pids)
    baseline = Baseline(suspect)
    baseline.check()
    suspect.process.stdin.write(b'\n')
    suspect.process.stdin.flush()
    suspect.process.stdout.readline()
    with pytest.raises(pytest.fail.Exception) as failure:
        baseline.check(seconds=0.5)
    assert word in str(failure.value)
