"""What processes_test starts through launch/processes.sh in place of a trainer: fast, without jax.

Prints its flags. --fail=I makes process I fail; all others wait for a signal, say which and end
with 0 (--deaf=I: process I does not heed SIGTERM). Without --fail: --wait makes all wait.
"""

import signal
import sys
import time

flags = dict(word.lstrip('-').partition('=')[::2] for word in sys.argv[1:])
print(' '.join(sys.argv[1:]), flush=True)


def end(number, _):
  """Says which signal came, and ends."""
  print('got', signal.Signals(number).name, flush=True)
  sys.exit(0)


for number in (signal.SIGINT, signal.SIGTERM):
  deaf = number == signal.SIGTERM and flags.get('deaf') == flags['process']
  if signal.getsignal(number) != signal.SIG_IGN:  # as Python does with SIGINT
    signal.signal(number, signal.SIG_IGN if deaf else end)
print('ready', flush=True)
if flags.get('fail') == flags['process']:
  time.sleep(0.5)  # the others are up by then
  sys.exit(3)
if 'fail' in flags or 'wait' in flags:
  time.sleep(60)
