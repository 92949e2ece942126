"""A GRPO step of SmolLM2-135M beside TRL's GRPOTrainer: same prompts, same reward, same process.

  python -m tests.benchmarks.grpo_peers [--steps=3] [--prompts=8] [--group=8] [--new=64]

One optimizer step a rollout of 8 prompts x 8 samples x 64 new tokens, temperature 1, beta 0, micro-
batches of 8. Neither side may stop early (ours has no stop tokens, theirs no end token), so that
both sample and train on the same number of tokens. TRL runs at its defaults (gradient checkpointing
among them) in fp32 and in bf16 autocast; ours in fp32, before, between and after them. A first step
of each compiles or warms up; medians of the others.

generate: sampling. log-probs: forward passes that score tokens. Ours needs none of its own, since
the policy that sampled is the policy that is trained and the sampled log-probabilities are kept; of
TRL the forward inside its loss counts. train: all else, chiefly backward and optimizer.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable

import datasets
import jax
import numpy as np
import torch
import transformers
import trl

from r1jax.algos.advantages import group_advantages
from r1jax.algos.grpo import GRPO
from r1jax.core import metrics
from r1jax.core.program import Program
from r1jax.engine.engine import Engine
from r1jax.optim import optimizer as optim
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.rollout import collect
from r1jax.rollout.collect import Limits, Trajectories
from r1jax.rollout.trajectory import rl_batch
from r1jax.tasks.gym import Gym
from r1jax.tasks.make import make as make_task
from r1jax.train import restored, rl, state, step
from r1jax.train.rl import RL
from tests.benchmarks.bars import bar, machine
from tests.benchmarks.decode_peers import converted, gguf, theirs

RATE, MICRO = 1e-6, 8
PARTS = ('generate', 'log-probs', 'train')
TARGETS = {'fp32': 1.5, 'bf16': 1.2}
SUMS = Gym(
  'chain_sum', (('min_terms', 2), ('max_terms', 3), ('min_digits', 1), ('max_digits', 1)),
  form='last_number',
)  # fmt: skip


def reward(text: str) -> float:
  """Costs nothing and differs within a group: the share of digits."""
  return sum(c.isdigit() for c in text) / max(len(text), 1)


class Ours:
  """The step of train/stages.py without its telemetry and checkpoints."""

  def __init__(self, model: restored.Restored, args: argparse.Namespace):
    self.examples = make_task(SUMS).examples('rl', 0, args.prompts * (2 + args.steps))
    self.tok, self.args = model.tok, args
    cfg = dataclasses.replace(model.exp.model, remat='full')
    width = max(len(model.tok.prompt(e.question)) for e in self.examples)
    rows = args.prompts * args.group
    self.stage = RL(
      AdamW(Constant(RATE), weight_decay=0.0), steps=1, prompts=args.prompts,
      algorithm=GRPO(group=args.group, beta=0.0), limits=Limits(width, args.new),
      microbatches=max(rows // MICRO, 1),
    )  # fmt: skip
    optimizer = optim.make(self.stage.optimizer, model.params)
    self.state = state.fresh(model.params, optimizer, None)
    self.engine = Engine(cfg, ())
    make = functools.partial(functools.partial, cfg=cfg, stage=self.stage)
    self.train = Program(
      'step',
      step.make(
        make(rl.loss), make(rl.denominators), optimizer, 0.0, self.stage.microbatches, rl.batch_axis
      ),
      donate_argnums=0,
    )

  def __call__(self, i: int) -> dict[str, float]:
    """Seconds of each part of step i."""
    group, a = self.args.group, self.stage.algorithm
    asked = self.examples[i * self.args.prompts :][: self.args.prompts]
    begin = time.monotonic()
    prompts_BP, lengths_B, samples = collect.sample(
      self.engine, self.state.params, self.tok, asked,
      group=group, key=jax.random.key(i), first=0, sampling=self.stage.sampling,
      limits=self.stage.limits,
    )  # fmt: skip
    sampled = time.monotonic()
    texts = collect.texts(self.tok, samples)
    reward_PG = np.array([reward(t) for t in texts], np.float32).reshape(-1, group)
    advantage_B = np.asarray(group_advantages(reward_PG, a.scale)).reshape(-1)
    batch = rl_batch(
      Trajectories(prompts_BP, lengths_B, samples, texts, []), advantage_B, 0, replay=False
    )
    self.state, measured = self.train(self.state, batch)
    metrics.finish(measured)
    jax.block_until_ready(self.state)
    return {
      'generate': sampled - begin, 'log-probs': 0.0, 'train': time.monotonic() - sampled,
      'tokens': float(samples.length_B.sum()),
    }  # fmt: skip


class Clock(transformers.TrainerCallback):
  """Seconds of TRL's steps and of the methods that it is wrapped around."""

  def __init__(self):
    self.steps, self._begin, self._spent = [], 0.0, defaultdict(float)

  def around(self, part: str, method: Callable) -> Callable:
    """The method, its time counted as `part`."""

    @functools.wraps(method)
    def timed(*args, **kwargs):
      begin = time.monotonic()
      try:
        return method(*args, **kwargs)
      finally:
        self._spent[part] += time.monotonic() - begin

    return timed

  def on_step_begin(self, args, state, control, **kwargs):
    """A step starts: its rollout comes first."""
    self._begin, self._spent = time.monotonic(), defaultdict(float)

  def on_step_end(self, args, state, control, **kwargs):
    """The optimizer has moved."""
    whole = time.monotonic() - self._begin
    spent = {name: self._spent[name] for name in PARTS[:2]}
    self.steps.append(spent | {'train': whole - sum(spent.values())})


def trl_steps(
  questions: list[str], args: argparse.Namespace, bf16: bool
) -> tuple[list[dict[str, float]], float]:
  """Seconds of each part of each step, and the mean length of a completion."""
  rows = args.prompts * args.group
  tokenizer = transformers.AutoTokenizer.from_pretrained(gguf().parent, gguf_file=gguf().name)
  given = [{'prompt': [{'role': 'user', 'content': q}]} for q in questions]
  with tempfile.TemporaryDirectory() as folder:
    settings = trl.GRPOConfig(
      output_dir=folder, use_cpu=True, bf16=bf16, learning_rate=RATE, beta=0.0, temperature=1.0,
      max_steps=args.steps + 1, per_device_train_batch_size=min(MICRO, rows),
      gradient_accumulation_steps=max(rows // MICRO, 1), num_generations=args.group,
      max_completion_length=args.new, generation_kwargs={'min_new_tokens': args.new},
      logging_steps=1, report_to=[], save_strategy='no', disable_tqdm=True,
      shuffle_dataset=False, log_level='error',
    )  # fmt: skip
    clock = Clock()
    trainer = trl.GRPOTrainer(
      model=theirs('float32'), args=settings, processing_class=tokenizer,
      train_dataset=datasets.Dataset.from_list(given), callbacks=[clock],
      reward_funcs=lambda completions, **_: [reward(c[0]['content']) for c in completions],
    )  # fmt: skip
    for part, name in (
      ('generate', '_generate_single_turn'),
      ('log-probs', '_get_per_token_logps_and_entropies'),
    ):
      setattr(trainer, name, clock.around(part, getattr(trainer, name)))
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
  lengths = [r['completions/mean_length'] for r in trainer.state.log_history if 'reward' in r]
  return clock.steps, statistics.mean(lengths)


def told(name: str, steps: list[dict[str, float]]) -> float:
  """Prints the split of the median step and returns its seconds."""
  whole = statistics.median(sum(s[p] for p in PARTS) for s in steps)
  parts = ', '.join(f'{p} {statistics.median(s[p] for s in steps):.1f}' for p in PARTS)
  print(f'{name:14} {whole:6.1f} s a step: {parts}', flush=True)
  return whole


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, value in (('steps', 3), ('prompts', 8), ('group', 8), ('new', 64)):
    parser.add_argument(f'--{name}', type=int, default=value)
  args = parser.parse_args()
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  print(f'{machine()}, torch {torch.__version__}, trl {trl.__version__}')
  with tempfile.TemporaryDirectory() as folder:
    ours = Ours(converted(folder), args)
  questions = [e.question for e in ours.examples]
  ours(0)
  mine, whole = [ours(1)], {}
  for name, bf16 in (('fp32', False), ('bf16', True)):
    steps, length = trl_steps(questions, args, bf16)
    whole[name] = told(f'TRL {name}', steps[1:])
    print(f'  {length:.1f} tokens a completion')
    mine += [ours(i) for i in range(1, 1 + args.steps)]
  took = told('r1jax fp32', mine)
  print(f'  {mine[0]["tokens"] / (args.prompts * args.group):.1f} tokens a completion')
  for name, target in TARGETS.items():
    bar(f'grpo_step_over_trl_{name}', whole[name] / took, '≥', target)


if __name__ == '__main__':
  main()
