"""The objective of distillation on plain arrays, against whole logits and by definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import distill as example
from r1jax.algos import distill
from r1jax.algos.distill import Distill, Ignored, Reverse
from r1jax.core import metrics
from r1jax.core.config import ConfigError
from r1jax.data.batch import Row, batch
from r1jax.model import transformer
from r1jax.model.config import GQA, Dense, Layer, ModelConfig, MoE
from r1jax.model.transformer import Transformer
from r1jax.train import distillation, forward
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train.distillation import Distillation, Hidden, Lesson, Live, Logits, Stored

RNG = np.random.default_rng(0)
L, E = 24, 6
LINES = [
  [Row(RNG.integers(1, 99, n), np.r_[np.zeros(3), np.ones(n - 3)]) for n in sizes]
  for sizes in ((8, 14), (20,), (5, 6, 7), (16,))
]
HOW = Distill(temperature=2.0)
DENSE = Layer(GQA(1, 1, 8, std=0.3), Dense(16, std=0.3))
EXPERTS = Layer(GQA(1, 1, 8, std=0.3), MoE(8, experts=4, active=2, std=0.3))
CFG = ModelConfig(100, 8, (DENSE,) * 3, std=0.3, remat='none')
SPARSE = ModelConfig(100, 8, (EXPERTS,), mtp=(EXPERTS,), std=0.3, remat='none')
TEACHER = 2 * RNG.normal(size=(4, L, 100)).astype('f4')


def stage_of(optimizer, objective, **more):
  return Distillation(optimizer, 1, Live('teacher'), objective, lines=4, **more)


@pytest.fixture(scope='module')
def optimizer(experiment):
  return experiment.stages[0].optimizer


@functools.cache
def born(cfg):
  """(lines, fresh parameters) for a model."""
  lines = batch(LINES, L, len(cfg.mtp))
  return lines, states.init_params(Transformer(cfg), 0, None, lines.inputs)


@functools.partial(jax.jit, static_argnums=2)
def outputs(params, inputs, cfg):
  """(logits of the whole vocabulary, streams) of a model."""
  out = Transformer(cfg).apply({'params': params}, inputs)
  return out.x_BLD @ transformer.head(params, cfg), [
    transformer.stream(out, cfg, i) for i in (2, 0)
  ]


def whole(teacher_BLV, temperature):
  """A lesson's (ids, log-probabilities) that leave nothing out."""
  logp_BLV = jax.nn.log_softmax(teacher_BLV / temperature)
  return jnp.broadcast_to(jnp.arange(logp_BLV.shape[-1]), logp_BLV.shape), logp_BLV


def only(objective, optimizer):
  """A stage without balance and prediction terms."""
  return stage_of(optimizer, objective, auxiliary=forward.Auxiliary(mtp=0.0, balance=0.0))


@pytest.mark.parametrize('how', [HOW, Distill(Reverse(), rest=Ignored())])
def test_all_ids_give_the_loss_of_whole_logits_and_its_gradient(optimizer, how):
  lines, params = born(CFG)
  lesson = Lesson(lines, *whole(TEACHER, how.temperature))
  d, stage = distillation.denominators(lesson, CFG), only(Logits(how), optimizer)

  def dense(params):
    z_BLV = outputs(params, lines.inputs, CFG)[0]
    total, weight = distill.full(z_BLV, TEACHER, lines.weights_BL > 0, how)[0]
    return total / weight

  loss = lambda p: distillation.loss(p, lesson, d, CFG, stage)[0]
  got, want = (jax.jit(jax.value_and_grad(f))(params) for f in (loss, dense))
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, got[1], want[1])


def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_the_data(optimizer):
  lines, params = born(CFG)
  lesson = Lesson(lines, *whole(outputs(params, lines.inputs, CFG)[0], 2.0))
  d, stage = distillation.denominators(lesson, CFG), only(Logits(HOW, hard=0.25), optimizer)
  value, aux = jax.jit(lambda p: distillation.loss(p, lesson, d, CFG, stage))(params)
  figures = metrics.finish(aux.metrics)
  np.testing.assert_allclose(figures['divergence'], 0, atol=1e-5)
  np.testing.assert_allclose(value, 0.25 * figures['loss'], rtol=1e-5)
  np.testing.assert_allclose(figures['teacher_mass'], 1, rtol=1e-5)
  assert figures['fill'] == pytest.approx(np.mean(lines.inputs.segments_BL > 0))


@pytest.mark.parametrize(
  'cfg, objective',
  [(SPARSE, Logits(HOW, k=3, hard=0.5)), (CFG, Hidden(((0, 1), (2, 0)), weight=0.7))],
)
def test_contract_01_the_gradient_is_the_same_for_any_microbatch_split(cfg, objective, optimizer):
  lines, params = born(cfg)
  ids_BLK, logp_BLK = jax.tree.map(lambda x: x[..., :3], whole(TEACHER, 2.0))
  streams, project = RNG.normal(size=(2, 4, L, E)).astype('f4'), RNG.normal(size=(2, 8, E))
  heads = {f'project{i}': {'weight': w.astype('f4')} for i, w in enumerate(project)}
  soft = Lesson(lines, ids_BLK, logp_BLK)
  lesson = soft if isinstance(objective, Logits) else Lesson(lines, streams=tuple(streams))
  loss = functools.partial(distillation.loss, cfg=cfg, stage=stage_of(optimizer, objective))
  d, both = distillation.denominators(lesson, cfg), {**params, **heads}
  want, aux = jax.jit(jax.grad(loss, has_aux=True))(both, lesson, d)
  parts = steps.split(lesson, 4, steps.rows_first)
  got, summed = jax.jit(functools.partial(steps.accumulate, loss))(both, parts, d)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, got, want)
  found, told = (metrics.finish(a.metrics) for a in (summed, aux))
  for name in told.keys() - {'load_max_over_mean'}:  # the spread of a part is its own
    close(found[name], told[name])
  assert told.keys() >= {'loss', 'fill', *(('mtp_loss', 'balance_loss') if cfg.mtp else ())}


def test_hidden_layers_are_compared_by_definition(optimizer):
  lines, params = born(CFG)
  teacher, project = RNG.normal(size=(2, 4, L, E)), RNG.normal(size=(2, 8, E))
  heads = {f'project{i}': {'weight': w.astype('f4')} for i, w in enumerate(project)}
  stage = stage_of(optimizer, Hidden(((2, 5), (0, 1)), weight=0.5, hard=0.0))
  lesson = Lesson(lines, streams=tuple(teacher.astype('f4')))
  d = distillation.denominators(lesson, CFG)
  got, aux = jax.jit(lambda p: distillation.loss(p, lesson, d, CFG, stage))({**params, **heads})
  streams = [np.asarray(h, 'f8') for h in outputs(params, lines.inputs, CFG)[1]]
  mask = lines.weights_BL > 0
  errors = [((h @ w - t)[mask] ** 2).mean() for h, w, t in zip(streams, project, teacher)]
  np.testing.assert_allclose(got, 0.5 * np.mean(errors), rtol=1e-4)
  figures = metrics.finish(aux.metrics)
  np.testing.assert_allclose(figures['layer2/error'], errors[0], rtol=1e-4)
  np.testing.assert_allclose(
    figures['layer0/unexplained'], errors[1] / np.square(teacher[1][mask]).mean(), rtol=1e-4
  )


def test_what_does_not_fit_together_is_refused(optimizer):
  with pytest.raises(ValueError, match='4 lines do not split into 3 microbatches'):
    stage_of(optimizer, Logits(), microbatches=3)
  with pytest.raises(ValueError, match=r'stored teachers hold logits alone; .* Live\(checkpoint\)'):
    dataclasses.replace(stage_of(optimizer, Hidden(((0, 0),))), teacher=Stored('x'))
  with pytest.raises(ValueError, match='pairs is empty'):
    Hidden(())
  with pytest.raises(ValueError, match='k is 0; expected 1 or more'):
    Logits(k=0)


@pytest.mark.parametrize('field', ['steps', 'lines', 'microbatches'])
def test_numbers_out_of_range_are_refused(optimizer, field):
  with pytest.raises(ValueError, match=rf'{field}=0\b.*; all must be ≥ 1'):
    dataclasses.replace(stage_of(optimizer, Logits()), **{field: 0})
  with pytest.raises(ValueError, match='length=0; a line holds 1 input or more'):
    Live('teacher', length=0)
  for objective in (Logits(), Hidden(((0, 0),))):
    for hard in (-0.5, float('nan'), float('inf')):
      with pytest.raises(ValueError, match='expected a weight of 0 or more'):
        dataclasses.replace(objective, hard=hard)


def test_an_unknown_part_of_the_example_config_is_one_line():
  for where in ('runs/x', 'runs/x,', 'a,b,c'):
    with pytest.raises(ConfigError, match=f'distill.py:{where}; expected TEACHER,FOLDER or alone'):
      example.get_config(where)
