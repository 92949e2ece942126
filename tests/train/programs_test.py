"""The compiled step: announced once, its state donated and kept in its place."""

import contextlib
import types

import jax
import jax.numpy as jnp
import pytest

from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.train.programs import train_program
from r1jax.train.state import State


def made(mesh, told):
  """What a program asks of a run."""
  announce = lambda what: told.append(what) or contextlib.nullcontext()
  return types.SimpleNamespace(mesh=mesh, announce=announce)


@pytest.mark.parametrize('sharded', [False, True])
def test_a_step_is_announced_once_and_keeps_the_place_of_its_state(sharded):
  mesh = meshes.make(Mesh(fsdp=8)) if sharded else None
  where = jax.sharding.NamedSharding(mesh, jax.P('fsdp')) if sharded else None
  state = State(jnp.int32(0), {'w': jax.device_put(jnp.arange(8.0), where)}, None)
  if sharded:
    state = state._replace(step=jax.device_put(state.step, jax.NamedSharding(mesh, jax.P())))
  told = []
  run = made(mesh, told)

  def step(state, batch):
    w = state.params['w'] + batch
    return state._replace(step=state.step + 1, params={'w': w}), {'sum': w.sum()}

  train = train_program(run, 'the step', step, state)
  first = state
  for _ in range(3):
    state, measured = train(state, jnp.float32(1))
  assert told == ['the step']
  assert int(state.step) == 3 and float(measured['sum']) == 28 + 3 * 8
  assert first.params['w'].is_deleted()
  if sharded:
    assert state.params['w'].sharding == where


@pytest.mark.parametrize('sharded', [False, True])
def test_what_is_not_trained_is_neither_donated_nor_made_anew(sharded):
  """Someone else may go on reading it; the trained part is donated as ever."""
  mesh = meshes.make(Mesh(fsdp=8)) if sharded else None
  where = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P('fsdp'))
  whole = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
  put = lambda x: jax.device_put(x, where)
  params = {'base': put(jnp.arange(8.0)), 'w': put(jnp.ones(8))}
  first = State(jax.device_put(jnp.int32(0), whole), params, None)

  def step(state, batch):
    new = state.params | {'w': state.params['w'] * batch + state.params['base']}
    return state._replace(step=state.step + 1, params=new), {}

  told = []
  train = train_program(made(mesh, told), 'the step', step, first, lambda path: path == 'w')
  state = first
  for _ in range(2):
    state, _ = train(state, jnp.float32(2))
  assert told == ['the step'] and int(state.step) == 2
  assert state.params['base'] is first.params['base']
  assert first.params['w'].is_deleted() and not first.params['base'].is_deleted()
  assert state.params['w'].tolist() == [4 + 3 * i for i in range(8)]
  if sharded:
    assert state.params['w'].sharding == where
