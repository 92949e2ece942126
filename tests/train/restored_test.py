"""A checkpoint made usable again."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core.config import ConfigError
from r1jax.core.errors import UserError
from r1jax.engine.budget import Budget
from r1jax.engine.requests import Completion, Piece
from r1jax.engine.sampling import RequestSampling
from r1jax.eval.evaluate import Evaluation
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.optim import optimizer as optim
from r1jax.rollout import collect
from r1jax.train import restored
from r1jax.train import state as states
from r1jax.train.point import Point


@pytest.fixture
def workdir(experiment, params, bare, tmp_path):
  """Checkpoints in the middle of SFT, after it, and after RL."""
  run = bare(experiment)
  run.store = Store(tmp_path / FOLDER)
  for update, (stage, step) in {2: (0, 2), 3: (0, 3), 5: (1, 1)}.items():
    state = states.fresh(params, optim.make(experiment.stages[0].optimizer, params), None, update)
    run.save(Point(stage, step, state), block=True)
  return tmp_path


def test_load_gives_parameters_config_and_where_they_come_from(experiment, params, workdir):
  model = restored.load(str(workdir))
  jax.tree.map(np.testing.assert_array_equal, model.params, params)
  assert (model.exp, model.step, model.stage) == (experiment, 5, 'grpo')
  assert restored.load(str(workdir / FOLDER / '2')).stage == 'sft'
  assert restored.load(str(workdir / FOLDER / '3')).stage == 'sft'


def test_overrides_apply_and_mistakes_are_named(workdir):
  model = restored.load(str(workdir), [('evaluation.problems', '16')])
  assert model.exp.evaluation.problems == 16
  with pytest.raises(ConfigError, match=r"no field 'problem'; did you mean 'problems'\?"):
    restored.load(str(workdir), [('evaluation.problem', '16')])
  with pytest.raises(UserError, match='does not exist; check the path'):
    restored.load(str(workdir / 'nowhere'))


def test_generate_gives_each_prompt_its_samples(workdir):
  model = restored.load(str(workdir))
  asked = (['2 * 3', '14 * 5'], 2, Sampling(), 6)
  made = restored.generate(model, *asked, seed=0)
  assert [len(texts) for texts in made] == [2, 2]
  assert (
    made == restored.generate(model, *asked, seed=0) != restored.generate(model, *asked, seed=1)
  )


def test_prompts_of_like_length_share_one_program(workdir, capsys):
  model = restored.load(str(workdir))
  for prompt in ('2 * 3', '14 * 5', '14 * 15', '114 * 15'):
    restored.generate(model, [prompt], 1, Sampling(), 6, seed=0)
  assert capsys.readouterr().err.count('compiling rollout') == 1


def test_requests_go_through_an_engine_that_streams_and_forces(workdir, experiment):
  model = restored.load(str(workdir))
  budget = Budget(thinking=2, reserve=2)
  asked = restored.requests(
    model, ['2 * 3', '14 * 5'], 12, samples=2, sampling=RequestSampling(), seed=1, budget=budget,
    stream=True,
  )  # fmt: skip
  assert len({r.seed for r in asked}) == 4 and asked[0].prompt == asked[1].prompt
  events = list(restored.stream(model, asked))
  done = {e.number: e for e in events if isinstance(e, Completion)}
  assert sorted(done) == [0, 1, 2, 3]
  for number, c in done.items():
    pieces = [e.text for e in events if isinstance(e, Piece) and e.number == number]
    assert ''.join(pieces) == c.text == collect.text(model.tok, c.tokens.tolist())
    assert c.used.thinking <= 2
  assert any('</think><answer>' in c.text for c in done.values())
  again = {e.number: e for e in restored.stream(model, asked) if isinstance(e, Completion)}
  assert all(again[n].tokens.tolist() == c.tokens.tolist() for n, c in done.items())
  with pytest.raises(UserError, match='request 0: stops are a tuple of strings'):
    list(restored.stream(model, [dataclasses.replace(asked[0], stops=('',))]))


def test_measure_takes_the_place_of_the_task(workdir, experiment):
  other = dataclasses.replace(experiment, evaluation=Evaluation(8, batch=8))
  model = restored.load(str(workdir), measure=other)
  assert model.exp.evaluation == Evaluation(8, batch=8)
  assert model.exp.model == experiment.model


def test_a_checkpoint_without_a_task_says_what_to_do(workdir):
  model = restored.load(str(workdir))
  bare = dataclasses.replace(model, exp=dataclasses.replace(model.exp, task=None, stages=()))
  with pytest.raises(UserError, match='has no task to evaluate: name a config that has one'):
    restored.evaluate(bare)


def test_a_checkpoint_of_another_revision_says_which(tmp_path):
  meta = {
    'experiment': {'no_longer': 1},
    'provenance': {'git': {'revision': '0123456789', 'dirty': False}},
  }
  with pytest.raises(UserError, match=r"'no_longer'.*was written by r1jax 0123456, use that one"):
    restored.described(epath.Path(tmp_path), meta)
