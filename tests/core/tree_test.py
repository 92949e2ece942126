"""Named trees: names, halves, counts, and layers that follow a new table of runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core import tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
  left: object
  right: object


NESTED = {'b': (np.zeros((2, 3), np.float32), {'c': np.ones(4, np.int8)}), 'a': Pair(1.0, None)}


def test_paths_join_keys_of_dicts_tuples_and_dataclasses():
  assert tree.paths(NESTED) == ['a/left', 'b/0', 'b/1/c']
  assert list(tree.flatten_named(NESTED)) == tree.paths(NESTED)
  assert tree.flatten_named(NESTED)['b/1/c'] is NESTED['b'][1]['c']


def test_two_leaves_of_one_name_are_refused():
  with pytest.raises(ValueError, match=r"two leaves are called 'a/b'"):
    tree.flatten_named({'a/b': 1, 'a': {'b': 2}})


def test_map_named_sees_path_and_leaves():
  out = tree.map_named(lambda path, x, y: (path, x + y), {'a': 1, 'b': [2]}, {'a': 10, 'b': [20]})
  assert out == {'a': ('a', 11), 'b': [('b/0', 22)]}


def test_match_is_of_the_whole_path():
  assert tree.match(r'.*router/bias', 'run0/block0/moe/router/bias')
  assert not tree.match(r'router/bias', 'run0/router/bias')


def test_count_and_bytes():
  assert tree.count(NESTED) == 1 + 6 + 4
  shapes = {
    'w': jax.ShapeDtypeStruct((4, 8), jnp.bfloat16),
    'n': jax.ShapeDtypeStruct((), jnp.int8),
  }
  assert (tree.count(shapes), tree.bytes_of(shapes)) == (33, 65)
  assert tree.bytes_of(NESTED['b']) == 24 + 4


@given(st.sets(st.sampled_from(['a/left', 'b/0', 'b/1/c'])))
def test_merge_undoes_split(chosen):
  selected, rest = tree.split(NESTED, lambda path, leaf: path in chosen)
  assert set(tree.paths(selected)) == chosen
  assert set(tree.paths(selected)) | set(tree.paths(rest)) == set(tree.paths(NESTED))
  for whole in (tree.merge(selected, rest), tree.merge(rest, selected)):
    assert jax.tree.structure(whole) == jax.tree.structure(NESTED)
    assert all(x is y for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(NESTED)))


def test_merge_refuses_a_leaf_held_twice():
  with pytest.raises(ValueError, match=r"both halves hold 'a'"):
    tree.merge({'a': 1}, {'a': 2})


def test_grad_is_taken_on_the_selected_half_beside_int8():
  params = {'w': jnp.array([1.0, 2.0]), 'frozen': jnp.array([3, 4], jnp.int8)}
  train, fixed = tree.split(params, lambda path, leaf: path == 'w')

  def loss(train):
    p = tree.merge(train, fixed)
    return jnp.sum(p['w'] * p['frozen'])

  grads = jax.grad(loss)(train)
  assert tree.paths(grads) == ['w']
  np.testing.assert_array_equal(grads['w'], [3.0, 4.0])


def model(runs):
  """Params in which every leaf of layer l holds l, or 100 + l."""
  depth = {place: l for l, place in enumerate(tree.places(runs))}
  out = {'embed': np.arange(3.0)}
  for i, (period, repeats) in enumerate(runs):
    out[f'run{i}'] = {}
    for j in range(period):
      layers = np.array([depth[i, j, r] for r in range(repeats)], np.float32)
      block = {'w': np.stack([layers, layers], 1), 'norm': {'scale': 100 + layers}}
      out[f'run{i}'][f'block{j}'] = block
  return out


def equal(a, b):
  a, b = tree.flatten_named(a), tree.flatten_named(b)
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def compositions(total):
  """All tables of runs over `total` layers, as a strategy."""

  def extend(done, left):
    if not left:
      return st.just(done)
    shapes = [(p, r) for p in range(1, left + 1) for r in range(1, left // p + 1)]
    return st.sampled_from(shapes).flatmap(lambda s: extend((*done, s), left - s[0] * s[1]))

  return extend((), total)


def test_places_follow_depth():
  assert tree.places(((1, 2), (2, 2))) == [
    (0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1),
  ]  # fmt: skip


@given(compositions(6), compositions(6))
def test_restack_moves_weights_with_their_layers(old, new):
  assert equal(tree.restack(model(old), old, new), model(new))
  for l in range(-6, 6):
    one = tree.layer(model(new), new, l)
    assert equal(one, {'w': np.full(2, l % 6), 'norm': {'scale': 100.0 + l % 6}})


def test_restack_under_jit():
  old, new = ((1, 2), (2, 2)), ((3, 2),)
  assert equal(jax.jit(lambda p: tree.restack(p, old, new))(model(old)), model(new))


def test_restack_refuses_what_does_not_fit():
  params = model(((1, 2),))
  with pytest.raises(ValueError, match=r'2 layers in .* cannot become 3 layers'):
    tree.restack(params, ((1, 2),), ((1, 3),))
  with pytest.raises(ValueError, match=r"params hold \['run0/block0'\].* names .*block1"):
    tree.restack(params, ((2, 1),), ((1, 2),))
  with pytest.raises(ValueError, match=r'run0/block0/.* has shape .* leading axis of 3'):
    tree.restack(params, ((1, 3),), ((1, 3),))
  with pytest.raises(IndexError, match='layer 2 of a model of 2 layers'):
    tree.layer(params, ((1, 2),), 2)


def test_layers_that_differ_are_not_stacked():
  params = model(((1, 1), (1, 1)))
  params['run1']['block0']['w'] = np.zeros((1, 5))
  with pytest.raises(ValueError, match="layers 0 and 1 differ in 'w'"):
    tree.restack(params, ((1, 1), (1, 1)), ((1, 2),))
