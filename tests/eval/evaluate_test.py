"""Accuracies of a stub engine that is right whenever it may think, half of the time else."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.engine.generate import Samples
from r1jax.eval import evaluate
from r1jax.eval.evaluate import Evaluation
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.rollout.collect import Limits
from r1jax.tasks.task import Example, Grade, Outcome
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.chat import render_solution

TOK = ByteTokenizer()
SPEC = Evaluation(problems=8, samples=2, batch=4, limits=Limits(prompt=8, completion=32), shown=2)
BARE = TOK.encode_special('</think>')[0]


class Digits:
  """Say the question."""

  name = 'digits'

  def examples(self, split, start, count):
    assert split == 'eval'
    return [Example(str(i), str(i), str(i)) for i in range(start, min(start + count, 8))]

  def grade(self, example, completion):
    right = f'<answer>{example.answer}</answer>' in completion
    return Grade(Outcome.CORRECT if right else Outcome.WRONG, float(right), {'accuracy': right})


class Engine:
  """Answers right; without a thought only even questions; greedily only the question 0."""

  def __init__(self):
    self.calls = []

  def __call__(self, params, prompts, lengths, keys, sampling, limit):
    self.calls.append((prompts.shape, sampling, np.asarray(jax.random.key_data(keys)).tolist()))
    tokens, counts = np.zeros((len(prompts), limit), np.int32), []
    for row, prompt in zip(tokens, prompts):
      question = chr(prompt[2])
      bare = BARE in prompt.tolist()
      right = question in '02468' if bare else question == '0' or sampling.temperature
      ids = render_solution(TOK, 'wait', question if right else '?')
      ids = ids[3 + len('wait') :] if bare else ids
      row[: len(ids)] = ids
      counts.append(len(ids))
    zeros = np.zeros(tokens.shape, np.float32)
    return Samples(tokens, zeros, np.array(counts), np.ones(len(counts), bool), ())


def grade(calls):
  return [Digits().grade(*call) for call in calls]


def test_evaluate_measures_sampled_greedy_and_thoughtless_accuracy():
  engine = Engine()
  figures = evaluate.evaluate(engine, None, TOK, Digits(), grade, SPEC)
  expected = {'samples': 16, 'correct': 16, 'accuracy': 1.0, 'problems': 8, 'temperature': 1.0}
  expected |= {'greedy_accuracy': 1 / 8, 'greedy_samples': 8, 'no_thought_accuracy': 0.5}
  expected |= {'length': 10.0, 'no_thought_length': 3.0, 'self_checks': 1.0, 'well_formed': 1.0}
  expected |= {'wrong': 0.0, 'first_correct': 1.0, 'zero_variance': 1.0, 'length/correct': 10.0}
  assert {name: figures[name] for name in expected} == pytest.approx(expected)
  assert 'length/wrong' not in figures
  assert [s['question'] for s in figures['shown']] == ['0', '1']
  said = '<think>wait</think><answer>0</answer>'
  assert figures['shown'][0] == {'question': '0', 'completion': said, 'outcome': 'correct'}
  assert [shape for shape, *_ in engine.calls] == [(8, 8), (8, 8), (4, 8), (4, 8), (8, 8), (8, 8)]


def test_figures_of_few_are_means_over_these_alone():
  """One batch has no wrong answer: the lengths of wrong ones are those of the other batch."""
  examples = [Example(f'{"ab"[i // 4]}/{i}', str(i), str(i)) for i in (0, 2, 4, 6, 1, 2, 3, 5)]
  found = evaluate.run(
    Engine(), None, TOK, examples, grade, SPEC, samples=1, sampling=Sampling(), thought='none'
  )
  assert found.figures['accuracy'] == 5 / 8 and found.figures['length/wrong'] == 3.0
  by_task = {n: x for n, x in found.figures.items() if n.startswith('task/')}
  assert by_task == {'task/a/accuracy': 3 / 5, 'task/b/accuracy': 2 / 3}


def test_passes_are_run_where_they_are_asked_for():
  engine = Engine()
  spec = dataclasses.replace(SPEC, passes=())
  figures = evaluate.evaluate(engine, None, TOK, Digits(), grade, spec)
  assert not {'greedy_accuracy', 'no_thought_accuracy'} & figures.keys()
  assert [shape for shape, *_ in engine.calls] == [(8, 8), (8, 8)]


def test_the_keys_do_not_depend_on_the_batch():
  one, two = Engine(), Engine()
  go = lambda engine, batch: evaluate.run(
    engine, None, TOK, Digits().examples('eval', 0, 8), grade,
    Evaluation(8, 2, batch, limits=SPEC.limits), samples=2, sampling=Sampling(),
  )  # fmt: skip
  assert go(one, 8) == go(two, 2)
  drawn = lambda engine: [row for *_, keys in engine.calls for row in keys]
  assert drawn(one) == drawn(two)


def test_forced_opens_the_answer():
  assert evaluate.forced(TOK, 'free') == []
  assert TOK.decode(evaluate.forced(TOK, 'none')) == '<think></think><answer>'


def test_errors():
  with pytest.raises(ValueError, match='problems=10 must be a multiple of batch=4'):
    Evaluation(problems=10, batch=4)
  for name, least in (('problems', 1), ('samples', 1), ('batch', 1), ('shown', 0)):
    with pytest.raises(ValueError, match=f'^{name}={least - 1}; expected {least} or more'):
      Evaluation(**{name: least - 1})
  with pytest.raises(UserError, match=r'digits has 8 held-out problems, .* asks for 16'):
    evaluate.held_out(Digits(), TOK, Evaluation(problems=16, batch=4, limits=SPEC.limits))
  with pytest.raises(UserError, match='the prompt of 0 has 7 tokens, the limit is 6'):
    evaluate.held_out(Digits(), TOK, Evaluation(problems=8, batch=4, limits=Limits(prompt=6)))
