"""The compiled step: announced once, its state donated and kept in its place."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from r1jax.sharding import mesh as meshes
from r1jax.sharding.mesh import Mesh
from r1jax.train.programs import train_program
from r1jax.train.state import State


@pytest.mark.parametrize('sharded', [False, True])
def test_a_step_is_announced_once_and_keeps_the_place_of_its_state(sharded):
  mesh = meshes.make(Mesh(fsdp=8)) if sharded else None
  where = jax.sharding.NamedSharding(mesh, jax.P('fsdp')) if sharded else None
  state = State(jnp.int32(0), {'w': jax.device_put(jnp.arange(8.0), where)}, None)
  if sharded:
    state = state._replace(step=jax.device_put(state.step, jax.NamedSharding(mesh, jax.P())))
  told = []
  run = type(
    'Run',
    (),
    {'mesh': mesh, 'announce': lambda _, what: told.append(what) or contextlib.nullcontext()},
  )()

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
