"""The quickstart's bars: time, memory, what GRPO gains, what SFT gains instead, the chain's worth.

  python -m tests.benchmarks.quickstart [--seeds=0,1,2] [--workdir=runs/benchmark]

For each seed: the quickstart in a process of its own (time and peak memory measured from outside),
then its control, which starts from the same SFT checkpoint and continues SFT on the same worked
solutions for the RL stage's compute. Compute is counted in token passes (forward 1, backward 2) of
padded batches; see `control_steps`.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time

from configs import quickstart
from r1jax.core import config
from r1jax.train.experiment import Experiment
from tests.benchmarks.bars import bar, machine


def control_steps(exp: Experiment) -> int:
  """SFT steps with at least the RL stage's token passes.

  An RL token is passed in the rollout (1), by the reference (1) and in training (3).
  """
  sft, rl = exp.stages
  width = rl.limits.prompt + rl.limits.completion
  passes_rl = rl.steps * rl.prompts * rl.algorithm.group * width * (1 + 1 + 3)
  return -(-passes_rl // (sft.lines * sft.length * 3))


def student(n: int) -> float:
  """The 97.5 % quantile of Student's t for n samples; few seeds make wide intervals."""
  return {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}.get(n, 2.306)


def tree_memory(pid: int) -> int:
  """Resident bytes of a process and its descendants."""
  total, waiting = 0, [pid]
  while waiting:
    p = waiting.pop()
    try:
      total += int(pathlib.Path(f'/proc/{p}/statm').read_text().split()[1]) * 4096
      for task in pathlib.Path(f'/proc/{p}/task').iterdir():
        waiting += map(int, (task / 'children').read_text().split())
    except (FileNotFoundError, ProcessLookupError, IndexError):
      continue  # it ended between two reads
  return total


def watched(command: list[str]) -> tuple[float, float]:
  """Runs a command; (seconds, peak GiB of its process tree)."""
  begin, peak = time.monotonic(), 0
  process = subprocess.Popen(command)
  done = threading.Event()

  def watch() -> None:
    nonlocal peak
    while not done.wait(0.5):
      peak = max(peak, tree_memory(process.pid))

  watcher = threading.Thread(target=watch)
  watcher.start()
  code = process.wait()
  done.set()
  watcher.join()
  if code:
    sys.exit(f'{" ".join(command)} ended with {code}')
  return time.monotonic() - begin, peak / 2**30


def one_seed(seed: int, root: pathlib.Path) -> dict[str, float]:
  """Quickstart, evaluation in a new process, control."""
  python, exp = sys.executable, config.from_dict(Experiment, quickstart.get_config())
  run, control = root / f'seed{seed}', root / f'control{seed}'
  seconds, memory = watched(
    ['env', f'WORKDIR={run}', 'bash', 'launch/quickstart.sh', f'--config.seed={seed}']
  )
  summary = json.loads((run / 'summary.json').read_text())
  again = json.loads((run / 'evaluation.json').read_text())
  sft, grpo = summary['evaluations']
  steps = control_steps(exp)
  overrides = {
    'seed': seed,
    'init': run / 'checkpoints' / str(exp.stages[0].steps),
    'stages[0].steps': steps,
    'stages[0].optimizer.schedule.steps': steps,
  }
  command = [python, '-m', 'r1jax.bin.train', '--config=configs/quickstart_control.py']
  command += [f'--workdir={control}', *(f'--config.{k}={v}' for k, v in overrides.items())]
  subprocess.run(command, check=True)
  (more,) = json.loads((control / 'summary.json').read_text())['evaluations']
  return {
    'seconds': seconds,
    'memory': memory,
    'sft': 100 * sft['accuracy'],
    'grpo': 100 * grpo['accuracy'],
    'gain': 100 * (grpo['accuracy'] - sft['accuracy']),
    'greedy sft': 100 * sft['greedy_accuracy'],
    'greedy grpo': 100 * grpo['greedy_accuracy'],
    'control': 100 * (more['accuracy'] - sft['accuracy']),
    'chain': 100 * (grpo['accuracy'] - grpo['no_thought_accuracy']),
    'same': float(again['accuracy'] == grpo['accuracy'] and again['length'] == grpo['length']),
    'samples': grpo['samples'],
  }


def main() -> None:
  """Runs the seeds, prints a table and the bars."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--workdir', default='runs/benchmark')
  args = parser.parse_args()
  root = pathlib.Path(args.workdir)
  results = {int(s): one_seed(int(s), root) for s in args.seeds.split(',')}
  print(f'\n{machine()}\n')
  names = list(next(iter(results.values())))
  print('seed  ' + '  '.join(f'{n:>11}' for n in names))
  for seed, r in results.items():
    print(f'{seed:<4}  ' + '  '.join(f'{r[n]:>11.1f}' for n in names))
  column = {n: [r[n] for r in results.values()] for n in names}
  gains, controls = column['gain'], column['control']
  if len(gains) > 1:
    for name in ('gain', 'control'):
      half = student(len(gains)) * statistics.stdev(column[name]) / len(gains) ** 0.5
      print(f'{name}: {statistics.mean(column[name]):.1f} ± {half:.1f} points (Student, 95 %)')
  print()
  bar('quickstart_seconds_max', max(column['seconds']), '≤', 480, 's')
  bar('quickstart_peak_memory_max', max(column['memory']), '<', 4, 'GiB')
  bar('samples_min', min(column['samples']), '≥', 1000)
  bar('sft_accuracy_min', min(column['sft']), '≥', 20, '%')
  bar('sft_accuracy_max', max(column['sft']), '≤', 60, '%')
  bar('grpo_gain_mean_points', statistics.mean(gains), '≥', 25)
  bar('grpo_gain_min_points', min(gains), '≥', 20)
  share = statistics.mean(controls) / statistics.mean(gains)
  bar('equal_compute_sft_gain_over_grpo_gain', share, '<', 0.5)
  bar('chain_worth_min_points', min(column['chain']), '≥', 20)
  bar('new_process_equals_training', min(column['same']), '≥', 1)


if __name__ == '__main__':
  main()
