"""What the algorithms reach at tiny size, over seeds: PPO, DPO, reward models, distillation, LoRA.

  python -m tests.benchmarks.algos [--seeds=0,1,2] [--workdir=runs/algos] [--only=ppo,lora]

For each seed one cold start (the SFT stage of configs/quickstart.py), from which PPO begins. What
PPO made takes the place of the quickstart's model: the teacher of configs/distill.py, the base of
adapters. Runs that begin with the same stage share it. Whatever is compared runs on the same seed,
data, steps and evaluation:

  dpo       held-out preference accuracy of the same model before; as many steps of SFT on the
            chosen ones (the same stage with nll=1 and β near 0)
  distill   a student of the same shape, steps and lines on the task's worked solutions alone
  lora      the same stage with all weights trained

A run that is finished is not run again, so that an interrupted benchmark goes on; several seeds may
run side by side (--seeds=0 & --seeds=1), and a last call prints them together.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys

from r1jax.core.interval import wilson
from tests.benchmarks.bars import bar, machine

PARTS = ('ppo', 'dpo', 'reward_model', 'distill', 'lora')


@dataclasses.dataclass(frozen=True)
class Seed:
  """Where a seed's runs lie."""

  number: int
  root: pathlib.Path

  def train(self, name: str, config: str, **overrides: object) -> list[dict]:
    """The evaluations of a run under this seed."""
    workdir = self.root / name
    if not (workdir / 'summary.json').exists():
      given = [f'--config.{k}={v}' for k, v in ({'seed': self.number} | overrides).items()]
      python('train', f'--config={config}', f'--workdir={workdir}', *given)
    return json.loads((workdir / 'summary.json').read_text())['evaluations']

  def cold(self, name: str, config: str) -> dict:
    """The evaluation of a config's first stage."""
    return self.train(name, f'tests/benchmarks/warm.py:cold,{config}')[-1]

  def warm(self, name: str, config: str, base: str) -> list[dict]:
    """The evaluations of a config's other stages, from the run `base` of its first one."""
    return self.train(name, f'tests/benchmarks/warm.py:{config}', init=self.root / base)


def python(binary: str, *args: str) -> None:
  """Runs a binary in a process of its own."""
  command = [sys.executable, '-m', f'r1jax.bin.{binary}', *args]
  print('$', ' '.join(command[1:]), flush=True)
  subprocess.run(command, check=True)


def start(seed: Seed) -> dict:
  """The cold start's evaluation."""
  return seed.cold('base', 'configs/ppo.py')


def ppo(seed: Seed) -> dict[str, float]:
  """Accuracy before and after, in percent."""
  before = start(seed)
  (after,) = seed.warm('ppo', 'configs/ppo.py', 'base')
  return {'before': 100 * before['accuracy'], 'after': 100 * after['accuracy']}


def dpo(seed: Seed) -> dict[str, float]:
  """Held-out preference accuracy before, after and of the control; the task's; in percent."""
  before, base, file = start(seed), seed.root / 'base', seed.root / 'pairs.jsonl'
  curate(seed, base, 'pairs', file, '--prompts=4096', '--group=4', '--per_prompt=1')
  config = f'configs/dpo.py:{base},{file}'
  (after,) = seed.train('dpo', config)
  tuned = {'stages[0].objective.beta': 1e-6, 'stages[0].objective.nll': 1.0}
  (control,) = seed.train('dpo_control', config, **tuned)
  return {
    'before': 100 * after['preference_accuracy_before'],
    'after': 100 * after['preference_accuracy'],
    'control': 100 * control['preference_accuracy'],
    'task before': 100 * before['accuracy'],
    'task after': 100 * after['accuracy'],
    'task control': 100 * control['accuracy'],
  }


def curate(seed: Seed, checkpoint: pathlib.Path, kind: str, out: pathlib.Path, *args: str) -> None:
  """Makes data with a model, once."""
  if not out.exists():
    python(
      'curate', f'--checkpoint={checkpoint}', f'--kind={kind}', f'--out={out}', '--batch=128',
      f'--seed={seed.number}', *args,
    )  # fmt: skip


def reward_model(seed: Seed) -> dict[str, float]:
  """Held-out accuracy of pairs, labels and steps, and the calibration error of each."""
  seed.cold('reward_base', 'configs/reward_model.py')
  runs = [
    seed.warm(f'reward_{kind}', f'configs/reward_model.py:{kind}', 'reward_base')
    for kind in ('pairwise', 'pointwise')  # the second begins with the stage 'process'
  ]
  of_stage, found = {e['stage']: e for run in runs for e in run}, {}
  for kind, figure in (('pairwise', 'preference'), ('pointwise', 'label'), ('process', 'process')):
    found[kind] = 100 * of_stage[kind][f'{figure}_accuracy']
    found[f'{kind} ece'] = 100 * of_stage[kind]['calibration_error']
  return found


def distill(seed: Seed) -> dict[str, float]:
  """Accuracy of teacher, student and the student without teacher, in percent."""
  teacher, data = seed.root / 'ppo', seed.root / 'distill_data'
  teaches = ppo(seed)['after']
  for kind in ('samples', 'logits'):
    out = data / ('samples.jsonl' if kind == 'samples' else 'logits')
    curate(seed, teacher, kind, out, '--prompts=1536', '--group=2')
  found = seed.train('distill', f'configs/distill.py:{teacher},{data}')
  alone = seed.train('distill_control', 'configs/distill.py:alone')
  return {
    'teacher': teaches,
    **{e['stage']: 100 * e['accuracy'] for e in found},
    'alone': 100 * alone[-1]['accuracy'],
  }


def lora(seed: Seed) -> dict[str, float]:
  """Accuracy with adapters and with all weights, in percent."""
  ppo(seed)
  runs = {kind: seed.train(f'lora_{kind}', f'configs/lora.py:{kind}', init=seed.root / 'ppo')[-1]
          for kind in ('lora', 'full')}  # fmt: skip
  return {kind: 100 * e['accuracy'] for kind, e in runs.items()}


def show(name: str, results: dict[int, dict[str, float]]) -> None:
  """A table, a row a seed."""
  columns = list(next(iter(results.values())))
  print(f'\n{name:<14}' + ''.join(f'{c:>15}' for c in columns))
  for number, row in results.items():
    print(f'seed {number:<9}' + ''.join(f'{row[c]:>15.1f}' for c in columns))


def bars(found: dict[str, dict[int, dict[str, float]]]) -> None:
  """One line a bar; what was not asked for is not-run."""
  worst = lambda part, f: min(f(row) for row in found[part].values()) if part in found else None
  low, _ = wilson(0.5 * 1024, 1024)
  beyond = 100 * (0.5 - low) * 2  # what two accuracies of 1,024 samples may differ by chance
  bar('ppo_gain_min_points', worst('ppo', lambda r: r['after'] - r['before']), '>', beyond)
  bar('dpo_preference_gain_min_points', worst('dpo', lambda r: r['after'] - r['before']), '>', 0)
  for kind in ('pairwise', 'pointwise', 'process'):
    bar(f'reward_{kind}_accuracy_min', worst('reward_model', lambda r: r[kind]), '≥', 90, '%')  # noqa: B023
  gain = worst('distill', lambda r: r['hidden'] - r['alone'])
  bar('distilled_over_alone_min_points', gain, '>', beyond)
  bar('lora_minus_full_min_points', worst('lora', lambda r: r['lora'] - r['full']), '≥', -3)


def main() -> None:
  """Runs the seeds, prints the tables and the bars."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--workdir', default='runs/algos')
  parser.add_argument('--only', default=','.join(PARTS))
  args = parser.parse_args()
  parts = {'ppo': ppo, 'dpo': dpo, 'reward_model': reward_model, 'distill': distill, 'lora': lora}
  found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in args.only.split(',')}
  for number in map(int, args.seeds.split(',')):
    seed = Seed(number, pathlib.Path(args.workdir) / f'seed{number}')
    start(seed)
    for name in found:
      found[name][number] = parts[name](seed)
  print(f'\n{machine()}')
  for name, results in found.items():
    show(name, results)
  print()
  bars(found)


if __name__ == '__main__':
  main()
