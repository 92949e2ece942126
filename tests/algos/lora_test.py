"""Adapters of whole models: adapted equals merged, gradients are those of the chain rule."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.algos import lora
from r1jax.algos.lora import LoRA
from r1jax.core import config, prng, tree
from r1jax.core.errors import UserError
from r1jax.core.qarray import Adapted, dense
from r1jax.engine.engine import Engine
from r1jax.kernels.logprob import logprobs
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.kernels.matmul import matmul
from r1jax.model import presets, transformer
from r1jax.model.config import (
  GQA,
  MLA,
  Dense,
  Gate,
  Hybrid,
  KeyScores,
  Layer,
  ModelConfig,
  MoE,
)
from r1jax.model.transformer import Inputs, Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.optim.schedules import Constant
from r1jax.sharding import mesh as meshes
from r1jax.sharding import place
from r1jax.sharding.mesh import Mesh

SPEC = LoRA(rank=4, alpha=8.0, targets='.*')
LATENT, GROUPED = (
  MLA(2, 8, 8, 8, kv_latent=16, q_latent=10, std=0.2),
  GQA(2, 2, 8, bias=True, pattern=Hybrid(2, KeyScores(0.5), Gate()), std=0.2),
)
EXPERTS = MoE(ffw=12, experts=4, active=2, groups=2, active_groups=1, std=0.2)
SMALL = ModelConfig(
  vocab=32,
  embed=16,
  layers=(Layer(GROUPED, Dense(24, std=0.2)), *(Layer(LATENT, EXPERTS),) * 2),
  mtp=(Layer(GROUPED, Dense(24, std=0.2)),),
  std=0.3,
  remat='full',
)
MODELS = {'r1': presets.tiny_r1(2), 'dense': presets.tiny_dense(layers=2), 'small': SMALL}
RNG = np.random.default_rng(0)
B, L = 8, 6
TOKENS = RNG.integers(0, 32, (3, B, L)).astype('i4')
SEGMENTS = np.ones((B, L), 'i4')
SEGMENTS[0, 4:] = 0
is_adapted = lambda w: isinstance(w, Adapted)


def boxed(cfg):
  return place.abstract(Transformer(cfg), dummy_inputs(cfg))


@functools.cache
def base(name):
  """Normal numbers, drawn by numpy: to compile the drawing takes longer than the model."""
  cfg, rng = MODELS[name], np.random.default_rng(1)
  shapes = place.templates(None, boxed(cfg))
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.15, s.dtype), shapes)


@functools.cache
def adapted(name):
  """Adapters on every matrix, as they may be after some training."""
  fresh = lora.attach(base(name), SPEC, jax.random.key(0))
  draw = lambda w: jnp.asarray(RNG.normal(size=w.shape) * 0.1, 'f4')
  return jax.tree.map(
    lambda w: dataclasses.replace(w, up=draw(w.up)) if is_adapted(w) else w,
    fresh,
    is_leaf=is_adapted,
  )


def loss(adapters, rest, cfg):
  """A number in which every weight has its part, and what the model gave."""
  params = tree.merge(adapters, rest)
  positions = np.broadcast_to(np.arange(L, dtype='i4'), (B, L))
  out = Transformer(cfg).apply(
    {'params': params}, Inputs(TOKENS[0], positions, SEGMENTS, (TOKENS[1],) * len(cfg.mtp))
  )
  head = transformer.head(params, cfg)
  logps = [logprobs(x, head, TOKENS[2]).logp for x in (out.x_BLD, *out.mtp)]
  total = sum(jnp.sum(logp * SEGMENTS) for logp in logps)
  return total + out.balance.total, (logps, out.routes)


MERGE = jax.jit(lora.merge)
RUN = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames='cfg')


@functools.cache
def trained_alone(name):
  return RUN(*lora.split(adapted(name)), MODELS[name])


def nothing(params):
  return jax.tree.map(lambda _: None, params)


def assert_close(a, b, tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, tolerance, tolerance), a, b)


@pytest.mark.parametrize('name', ['small', 'dense'])
def test_adapted_equals_merged_and_gradients_obey_the_chain_rule(name):
  (total, (logps, routes)), grads = trained_alone(name)
  merged = MERGE(adapted(name))
  assert jax.tree.structure(merged) == jax.tree.structure(base(name))
  (want, (want_logps, want_routes)), dense_grads = RUN(merged, nothing(merged), MODELS[name])
  jax.tree.map(np.testing.assert_array_equal, routes, want_routes)
  assert_close((total, logps), (want, want_logps), 2e-4)
  dense_grads = tree.flatten_named(dense_grads)
  pairs = jax.tree_util.tree_flatten_with_path(adapted(name), is_leaf=is_adapted)[0]
  grads = tree.flatten_named(grads)
  seen = set()
  for path, w in ((tree.name(p), w) for p, w in pairs if is_adapted(w)):
    d_w, down, up = (np.asarray(a, 'f8') for a in (dense_grads[path], w.down, w.up))
    lead, k, n = w.shape[: w.lead], *(int(np.prod(x)) for x in split_shape(w))
    d_w, down, up = (
      d_w.reshape(*lead, k, n),
      down.reshape(*lead, k, SPEC.rank),
      up.reshape(*lead, SPEC.rank, n),
    )
    for key, want in (
      ('down', d_w @ np.swapaxes(up, -1, -2)),
      ('up', np.swapaxes(down, -1, -2) @ d_w),
    ):
      got = np.asarray(grads[f'{path}/{key}']).reshape(want.shape)
      assert np.abs(want).max() > 0
      np.testing.assert_allclose(got, 2 * want, rtol=2e-3, atol=2e-3 * np.abs(2 * want).max())
    seen |= {f'{path}/down', f'{path}/up'}
  assert seen == grads.keys() > set()


def split_shape(w):
  """(sizes of inputs, sizes of outputs)"""
  return w.shape[w.lead : w.lead + w.inputs], w.shape[w.lead + w.inputs :]


@pytest.mark.parametrize('name', ['r1', 'dense'])
def test_contract_12_the_rollout_computes_with_the_adapters(name):
  """Prefill and (for MLA, absorbed) decode; the sampler's log-probabilities are the trainer's."""
  cfg, params = MODELS[name], adapted(name)
  prompts, lengths, limit = TOKENS[0, :4, :5], np.array([5, 2, 4, 1], 'i4'), 6
  keys = prng.fold_rows(jax.random.key(5), np.arange(4))
  engine = Engine(cfg, (cfg.vocab,))
  made = engine(params, prompts, lengths, keys, Sampling(), limit)
  merged = engine(MERGE(params), prompts, lengths, keys, Sampling(), limit)
  np.testing.assert_array_equal(made.tokens_BT, merged.tokens_BT)
  np.testing.assert_allclose(made.logp_BT, merged.logp_BT, atol=1e-4)
  without = engine(base(name), prompts, lengths, keys, Sampling(), limit)
  assert np.abs(made.logp_BT - without.logp_BT).max() > 0.01
  tokens = np.zeros((4, 12), 'i4')
  for b, n in enumerate(lengths):
    tokens[b, : n + limit] = [*prompts[b, :n], *made.tokens_BT[b]]
  at = np.broadcast_to(np.arange(12, dtype='i4'), tokens.shape)
  inputs = Inputs(tokens, at, (at < (lengths + limit)[:, None]).astype('i4'))
  x_BLD = jax.jit(Transformer(cfg).apply)({'params': params}, inputs).x_BLD
  logp = logprobs(x_BLD, transformer.head(params, cfg), np.roll(tokens, -1, 1)).logp
  for b, n in enumerate(lengths):
    np.testing.assert_allclose(logp[b, n - 1 : n - 1 + limit], made.logp_BT[b], atol=1e-4)


def products(jaxpr):
  """How many numbers each matrix product of the program, and of all that it calls, results in."""
  shapes = re.findall(r'\[([\d,]+)\] = dot_general', str(jaxpr))
  return {int(np.prod([int(n) for n in shape.split(',')])) for shape in shapes}


def test_no_gradient_of_a_weights_size_is_formed():
  cfg, plain = MODELS['dense'], base('dense')
  params = lora.attach(plain, LoRA(rank=4), jax.random.key(0))
  leaves = jax.tree.leaves(params, is_leaf=is_adapted)
  sizes = {int(np.prod(w.shape[1:])) for w in leaves if is_adapted(w)}

  def made(trained, rest):
    return products(jax.make_jaxpr(jax.grad(lambda t: loss(t, rest, cfg)[0]))(trained))

  assert len(sizes) == 3 and not sizes & made(*lora.split(params))
  assert sizes <= made(plain, nothing(plain))


def test_on_a_mesh_the_numbers_are_those_of_one_device():
  mesh, cfg = meshes.make(Mesh(fsdp=2, expert=2, tensor=2)), MODELS['small']
  where = place.shardings(mesh, lora.boxed(boxed(cfg), SPEC))
  with jax.set_mesh(mesh):
    params = jax.device_put(adapted('small'), where)
    (total, (logps, routes)), grads = RUN(*lora.split(params), cfg)
    merged = jax.jit(lora.merge, out_shardings=place.shardings(mesh, boxed(cfg)))(params)
  (want, (want_logps, want_routes)), want_grads = trained_alone('small')
  jax.tree.map(np.testing.assert_array_equal, routes, want_routes)
  assert_close((total, logps, grads), (want, want_logps, want_grads), 1e-4)
  assert_close(merged, MERGE(adapted('small')), 1e-6)
  down = params['run1']['block0']['mlp']['down']
  assert down.down.sharding.spec == jax.P(None, 'expert', 'tensor', None)
  assert down.up.sharding.spec == jax.P(None, 'expert', None, 'fsdp')
  out = params['run0']['block0']['attention']['out']
  assert out.down.sharding.spec == jax.P(None, 'tensor', None, None)
  assert out.up.sharding.spec == jax.P(None, None, 'fsdp')


def test_fresh_adapters_lie_where_their_boxes_say_and_change_nothing():
  mesh, cfg, params = meshes.make(Mesh(fsdp=2, expert=2, tensor=2)), SMALL, base('small')
  sharded = jax.device_put(params, place.shardings(mesh, boxed(cfg)))
  on_mesh = lora.attach(sharded, SPEC, jax.random.key(3))
  alone = lora.attach(params, SPEC, jax.random.key(3))
  what = lambda x: (x.shape, x.dtype, x.sharding)
  templates = place.templates(mesh, lora.boxed(boxed(cfg), SPEC))
  assert jax.tree.map(what, templates) == jax.tree.map(what, on_mesh)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(on_mesh), jax.device_get(alone))
  jax.tree.map(np.testing.assert_array_equal, MERGE(alone), params)
  gate = alone['run1']['block0']['mlp']['gate']
  assert gate.base is params['run1']['block0']['mlp']['gate']
  assert not gate.up.any() and gate.scale == 2.0
  assert 0.2 < np.abs(gate.down).max() < 16**-0.5 and np.abs(gate.down.mean()) < 0.02
  assert not np.array_equal(gate.down, alone['run1']['block0']['mlp']['up'].down)


def test_the_numbers_of_an_adapter_do_not_depend_on_what_else_has_one():
  some = lora.attach(base('small'), LoRA(4, 8.0, r'.*/out'), jax.random.key(0))
  every = lora.attach(base('small'), SPEC, jax.random.key(0))
  for x, y in ((some, every), (every, some)):
    a, b = (p['run1']['block0']['attention']['out'].down for p in (x, y))
    np.testing.assert_array_equal(a, b)
  assert isinstance(some['head'], jax.Array)


@pytest.mark.parametrize('name', MODELS)
def test_the_default_is_every_matrix_but_embedding_head_and_routers(name):
  params = place.templates(None, lora.boxed(boxed(MODELS[name]), LoRA()))
  leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_adapted)[0]
  with_pair = {tree.name(p) for p, w in leaves if is_adapted(w)}
  plain = {tree.name(p) for p, w in leaves if not is_adapted(w)}
  ends = {path.split('/')[-1] for path in plain}
  assert {e for e in ends if not e.endswith(('scale', 'bias'))} <= {'embedding', 'head', 'weight'}
  assert all('router' in path for path in plain if path.endswith('/weight'))
  pairs = {f'{path}/{key}' for path in with_pair for key in ('down', 'up')}
  assert {path for path in tree.paths(params) if lora.is_adapter(path)} == pairs > set()
  with_mtp = lambda paths: any(path.startswith('mtp0/') for path in paths)
  assert with_mtp(with_pair) == bool(MODELS[name].mtp)


def test_two_steps_of_gradient_descent_by_hand():
  """y = x W0 + 2 (x·down)·up towards 3: 1, then 5.5; all numbers are exact in binary."""
  params = {
    'w': Adapted(jnp.array([[1.0], [0.0]]), jnp.array([[1.0], [2.0]]), jnp.zeros((1, 1)), 2.0)
  }
  adapters, rest = lora.split({'run': params})
  sgd = optax.sgd(1 / 16)
  state = sgd.init(adapters)

  def error(adapters):
    w = tree.merge(adapters, rest)['run']['w']
    return 0.5 * jnp.sum((matmul('BLD,DF->BLF', jnp.ones((1, 1, 2)), w) - 3) ** 2)

  for want_loss, down, up in ((2.0, [1, 2], 0.75), (3.125, [0.765625, 1.765625], -0.1875)):
    got_loss, grads = jax.value_and_grad(error)(adapters)
    updates, state = sgd.update(grads, state, adapters)
    adapters = optax.apply_updates(adapters, updates)
    assert got_loss == want_loss
    np.testing.assert_array_equal(adapters['run']['w'].down[:, 0], down)
    assert adapters['run']['w'].up == up
  assert adapters['run']['w'].base is None


def test_adamw_moves_the_adapters_and_keeps_no_moments_of_the_base():
  adapters, rest = lora.split(adapted('dense'))
  _, grads = trained_alone('dense')
  spec = optim.AdamW(Constant(0.1), weight_decay=0.5, clip=None)
  optimizer = optim.make(spec, adapters)

  @jax.jit
  def first(adapters, grads):
    updates, state = optimizer.update(grads, optimizer.init(adapters), adapters)
    return optax.apply_updates(adapters, updates), state

  moved, state = first(adapters, grads)
  assert tree.count(state) == 2 * tree.count(adapters) + 2  # two counters of steps

  def check(new, old, g):  # the first step of Adam: g / (|g| + eps)
    old, g = np.asarray(old), np.asarray(g)
    want = old - 0.1 * (g / (np.abs(g) + spec.eps) + 0.5 * old)
    np.testing.assert_allclose(new, want, rtol=1e-5, atol=1e-6)

  jax.tree.map(check, moved, adapters, grads)
  joined = tree.merge(moved, rest)
  assert jax.tree.structure(joined) == jax.tree.structure(adapted('dense'))
  assert joined['embedding'].base is base('dense')['embedding']


def test_a_base_in_bfloat16_has_fp32_adapters():
  params = {'run0': {'mlp': {'gate': jnp.ones((2, 5, 7), jnp.bfloat16)}}}
  gate = lora.attach(params, SPEC, jax.random.key(0))['run0']['mlp']['gate']
  assert (gate.dtype, gate.down.dtype, gate.up.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
  assert dense(gate).dtype == jnp.float32


def test_patterns_that_choose_no_matrix_list_what_there_is():
  for targets in ('attention', r'.*scale', r'.*_bias'):
    with pytest.raises(
      UserError, match=r"targets '.*' matches .* no matrix; there are .*run\*/block\*"
    ) as e:
      lora.attach(base('small'), LoRA(targets=targets), jax.random.key(0))
    assert 'scale' not in str(e.value).split('there are')[1] and '\n' not in str(e.value)
    with pytest.raises(UserError, match='no matrix'):
      lora.boxed(boxed(SMALL), LoRA(targets=targets))


def test_adapters_upon_adapters_are_refused():
  with pytest.raises(UserError, match=r"adapters already \('.*/down'\); merge them"):
    lora.attach(adapted('small'), SPEC, jax.random.key(0))


@pytest.mark.parametrize(
  'fields, said',
  [
    ({'rank': 0}, 'rank=0'),
    ({'alpha': -1.0}, 'alpha=-1'),
    ({'targets': '*'}, r"targets '\*' is no regular expression"),
  ],
)
def test_a_config_that_makes_no_sense_is_refused(fields, said):
  with pytest.raises(config.ConfigError, match=said):
    config.from_dict(LoRA, fields)


def test_the_config_is_read_as_others_are():
  spec = config.override(LoRA(), 'targets', '.*/attention/.*')
  assert spec == LoRA(targets='.*/attention/.*')
  assert config.from_dict(LoRA, config.to_dict(spec)) == spec


def test_the_summary_counts_what_trains():
  params = lora.attach(
    {'run0': {'mlp': {'w': jnp.ones((1, 100, 100))}}}, LoRA(1, targets='.*'), jax.random.key(0)
  )
  assert lora.summary(params) == '2 % of 0.0102 M parameters train'
  v3 = place.templates(None, lora.boxed(boxed(presets.deepseek_v3()), LoRA()))
  assert lora.summary(v3) == '0.99 % of 689 B parameters train'
