"""Indexers warm up alone, beside a model that stays as it is and sees everything."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from r1jax.core.config import from_dict
from r1jax.data import batch as batches
from r1jax.data.batch import Row
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Problems
from r1jax.model.config import (
  GQA,
  MLA,
  Dense,
  Full,
  Indexer,
  Layer,
  ModelConfig,
  MoE,
  TopK,
  Watched,
)
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.tasks.retrieval import Retrieval
from r1jax.train import forward, step, supervised
from r1jax.train import state as states
from r1jax.train.experiment import Experiment
from r1jax.train.forward import INDEXERS, Auxiliary, Sparse, Warmup
from r1jax.train.supervised import SFT, Phase, Pretrain
from tests.system import tiny_config

SPARSE = TopK(4, Indexer(2, 8, 4))
CFG = ModelConfig(
  12,
  16,
  (
    Layer(MLA(2, 4, 4, 4, 8, pattern=SPARSE, std=0.3), MoE(8, 4, 2, std=0.3)),
    Layer(GQA(2, 1, 8, pattern=SPARSE, std=0.3), Dense(16, std=0.3)),
  ),
  std=0.5,
  remat='none',
)
WARM = AdamW(Constant(1e-2), only=INDEXERS)
DATA = Mixture((Part(Problems(Retrieval(8), 4)),))


def test_while_indexers_warm_up_their_layers_see_everything():
  mixed = dataclasses.replace(CFG.layers[0], attention=GQA(2, 1, 8))
  cfg = dataclasses.replace(CFG, layers=(*CFG.layers, mixed), mtp=CFG.layers[:1])
  staged = forward.staged(cfg, Auxiliary(indexer=Warmup()))
  assert staged.patterns == (*[Watched(SPARSE.indexer)] * 2, Full(), Watched(SPARSE.indexer))
  assert staged.indexers == cfg.indexers == 3
  assert forward.staged(cfg, Auxiliary()) == cfg
  with pytest.raises(ValueError, match='no layer of the model has a TopK pattern'):
    forward.staged(dataclasses.replace(cfg, layers=(mixed,), mtp=()), Auxiliary(indexer=Warmup()))


def test_only_indexers_move_and_their_divergence_falls():
  stage = SFT(WARM, 30, DATA, 2, 12, auxiliary=Auxiliary(indexer=Warmup()))
  (part,) = supervised.segments(stage, CFG)
  params = states.init_params(Transformer(CFG), 0, None, dummy_inputs(CFG))
  optimizer = optim.make(stage.optimizer, params)
  rng = np.random.default_rng(0)
  rows = [[Row(tuple(rng.integers(0, 12, 9).tolist()), (1,) * 9)] for _ in range(4)]
  batch = batches.batch(rows, 12, 0)
  loss = functools.partial(supervised.loss, cfg=part.model, auxiliary=part.auxiliary)
  count = functools.partial(supervised.denominators, cfg=part.model)
  update = jax.jit(step.make(loss, count, optimizer, part.auxiliary.gamma))
  state, losses = states.fresh(params, optimizer, None), []
  for _ in range(stage.steps):
    state, made = update(state, batch)
    losses.append(float(made['indexer_loss'][0] / made['indexer_loss'][1]))
  assert losses[-1] < 0.7 * losses[0]
  before, after = (jax.tree_util.tree_leaves_with_path(p) for p in (params, state.params))
  moved = {jax.tree_util.keystr(p) for (p, a), (_, b) in zip(before, after) if (a != b).any()}
  assert moved and all('indexer' in path for path in moved)
  assert len(moved) == sum('indexer' in jax.tree_util.keystr(p) for p, _ in before)


def test_what_would_move_other_weights_is_refused():
  warm, sparse = Auxiliary(indexer=Warmup()), Auxiliary(indexer=Sparse())
  with pytest.raises(ValueError, match='Warmup trains indexers alone'):
    SFT(AdamW(Constant(1e-3)), 4, auxiliary=warm)
  with pytest.raises(ValueError, match='make them two stages'):
    Pretrain(WARM, DATA, (Phase(4, auxiliary=warm), Phase(4, auxiliary=sparse)))
  with pytest.raises(ValueError, match='is the path of no parameter'):
    optim.make(WARM, {'head': np.zeros(3)})
  with pytest.raises(ValueError, match='weight=-1'):
    Sparse(-1)
  exp = from_dict(Experiment, tiny_config.get_config())
  with pytest.raises(ValueError, match='indexers warm up in SFT and Pretrain alone'):
    rl = dataclasses.replace(exp.stages[1], auxiliary=warm)
    dataclasses.replace(exp, stages=(exp.stages[0], rl))
