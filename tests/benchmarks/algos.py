"""What the algorithms reach at tiny size, over seeds: PPO, DPO, reward models, distillation, LoRA.

  python -m tests.benchmarks.algos [--seeds=0,1,2] [--workdir=runs/algos] [--only=ppo,lora]

For each seed one cold start (the SFT stage that the configs share), from which every config of
configs/{ppo,dpo,reward_model,lora}.py begins; the teacher of configs/distill.py is what PPO made.
Whatever is compared runs on the same seed, data, steps and evaluation:

  lora      the same stage with all weights trained
  distill   a student of the same shape and steps on the task's worked solutions, without teacher
  dpo       held-out preference accuracy of the same model before
"""

import json
import pathlib
import subprocess
import sys

PARTS = ('ppo', 'dpo', 'reward_model', 'distill', 'lora')


def python(module: str, *args: str) -> None:
  """Runs a binary in a process of its own."""
  command = [sys.executable, '-m', module, *args]
  print('$', ' '.join(command[1:]), flush=True)
  subprocess.run(command, check=True)


def train(config: str, workdir: pathlib.Path, seed: int, **overrides: object) -> list[dict]:
  """The evaluations of a run; one that is finished is not run again."""
  if not (workdir / 'summary.json').exists():
    given = [f'--config.{k}={v}' for k, v in ({'seed': seed} | overrides).items()]
    python('r1jax.bin.train', f'--config={config}', f'--workdir={workdir}', *given)
  return json.loads((workdir / 'summary.json').read_text())['evaluations']


def warm(name: str, base: pathlib.Path, out: pathlib.Path, seed: int, **overrides: object) -> dict:
  """The last evaluation of a config's own stage, from the shared cold start."""
  file = f'tests/benchmarks/warm.py:configs/{name}.py'
  workdir = out / name.replace(':', '_').replace('.py', '')
  return train(file, workdir, seed, init=base, **overrides)[-1]


def ppo(start: dict, base: pathlib.Path, out: pathlib.Path, seed: int) -> dict[str, float]:
  """Accuracy before and after, in percent."""
  after = warm('ppo', base, out, seed)
  return {'before': 100 * start['accuracy'], 'after': 100 * after['accuracy']}
