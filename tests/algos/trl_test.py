"""Values and gradients equal TRL's own code on the same logits, masks and rewards, to 1e-5.

TRL's loss methods run unbound on a stand-in for the trainer: nothing of theirs is retyped. Where
TRL means something else the closed form is the truth and the difference is pinned: its group std
has 1/(G−1), and it counts rows without a token. TRL 1.16 has no PPO any more (no value loss, no GAE
anywhere in it): ppo_test.py holds closed forms.
"""

import dataclasses
import functools
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.algos import distill, dpo, grpo, reward_model
from r1jax.algos.advantages import LeaveOneOut, Std, group_advantages
from r1jax.algos.dpo import DPO, IPO, PerToken, Scored, Sigmoid
from r1jax.algos.grpo import GRPO
from r1jax.algos.kl import K3, Unbiased
from r1jax.algos.offpolicy import SequenceMask, Truncated
from r1jax.algos.surrogate import Clip, ConstantLength, SequenceMean, SequenceRatio, TokenMean

torch = pytest.importorskip('torch')
trl = pytest.importorskip('trl')

B, L, V = 6, 7, 11
RNG = np.random.default_rng(0)
LOGITS, OLD, REF, SAMPLED = (RNG.normal(size=(B, L, V)).astype(np.float32) for _ in range(4))
IDS = RNG.integers(V, size=(B, L))
LENGTH = np.array([7, 1, 4, 5, 2, 6])
MASK = np.arange(L) < LENGTH[:, None]
ADV = RNG.normal(size=B).astype(np.float32)
OURS = GRPO(beta=0.04, kl=K3(), old='recomputed')


def torch_logps(logits, ids=IDS):
  return torch.log_softmax(torch.as_tensor(logits), -1).gather(-1, torch.as_tensor(ids)[..., None])[
    ..., 0
  ]


def jax_logps(logits, ids=IDS):
  return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(ids)[..., None], -1)[..., 0]


def trainer(**fields):
  """What the loss methods read of a trainer, in evaluation on one process."""
  accelerator = SimpleNamespace(
    num_processes=1, device='cpu',
    gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x,
  )  # fmt: skip
  return SimpleNamespace(
    model=SimpleNamespace(training=False), accelerator=accelerator, aux_loss_enabled=False,
    _metrics=defaultdict(functools.partial(defaultdict, list)), **fields,
  )  # fmt: skip


def trl_grpo(loss_type, mask=MASK, level='token', beta=0.04, delta=None, cap=None, unbiased=False):
  """TRL's GRPO loss and its gradient in the logits."""
  logits = torch.tensor(LOGITS, requires_grad=True)
  self = trainer(
    _get_per_token_logps_and_entropies=lambda *_, **__: (
      torch_logps(logits), torch.zeros(B, L), None
    ),
    args=SimpleNamespace(use_bias_correction_kl=unbiased, delta=None, steps_per_generation=1),
    top_entropy_quantile=1.0, off_policy_mask_threshold=delta, importance_sampling_level=level,
    beta=beta, loss_type=loss_type, epsilon_low=0.2, epsilon_high=0.28, max_completion_length=20,
    use_vllm=cap is not None, vllm_importance_sampling_correction=cap is not None,
    _entropy_bonus_enabled=False, get_off_policy_mask=trl.GRPOTrainer.get_off_policy_mask,
  )  # fmt: skip
  old, sampled = torch_logps(OLD), torch_logps(SAMPLED)
  inputs = {
    'prompt_ids': torch.zeros(B, 1, dtype=int), 'prompt_mask': torch.ones(B, 1, dtype=int),
    'completion_ids': torch.as_tensor(IDS), 'completion_mask': torch.as_tensor(mask).int(),
    'advantages': torch.as_tensor(ADV), 'old_per_token_logps': old,
    'ref_per_token_logps': torch_logps(REF), 'sampling_per_token_logps': sampled,
    'num_items_in_batch': torch.as_tensor(mask).sum(),
  }  # fmt: skip
  if cap is not None:
    inputs['importance_sampling_ratio'] = torch.clamp(torch.exp(old - sampled), max=cap)
  loss = trl.GRPOTrainer._compute_loss(self, None, inputs)
  loss.backward()
  return loss.item(), logits.grad.numpy()


def our_grpo(cfg, mask=MASK):
  """Our loss, its gradient in the logits, and our metrics."""

  def f(logits):
    arrays = jax_logps(OLD), jax_logps(REF), jnp.asarray(ADV), jnp.asarray(mask)
    (total, weight), metrics = grpo.loss(jax_logps(logits), *arrays, cfg, jax_logps(SAMPLED))
    return total / weight, metrics

  (loss, metrics), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(LOGITS)
  return loss, grad, {name: np.divide(*x) for name, x in metrics.items()}


def assert_same(ours, theirs):
  assert np.abs(theirs[1]).max() > 1e-3
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  'theirs, changes',
  [
    ({'loss_type': 'grpo'}, {}),
    ({'loss_type': 'grpo', 'unbiased': True}, {'kl': Unbiased()}),
    ({'loss_type': 'grpo', 'beta': 0.0}, {'beta': 0.0}),
    ({'loss_type': 'grpo', 'level': 'sequence'}, {'ratio': SequenceRatio()}),
    ({'loss_type': 'grpo', 'delta': 0.1}, {'drop': SequenceMask(0.1)}),
    ({'loss_type': 'dapo', 'cap': 1.5}, {'correct': Truncated(1.5), 'aggregate': TokenMean()}),
    ({'loss_type': 'dapo'}, {'aggregate': TokenMean()}),
    ({'loss_type': 'bnpo'}, {'aggregate': TokenMean()}),
    ({'loss_type': 'dr_grpo'}, {'aggregate': ConstantLength(20)}),
  ],
  ids=lambda x: '-'.join(f'{k}={v}' for k, v in x.items() if k != 'aggregate'),
)
def test_contract_02_grpo_is_trl_s(theirs, changes):
  """k3 and unbiased KL, token and sequence ratio, corrections, and every mean."""
  cfg = dataclasses.replace(OURS, clip=Clip(0.2, 0.28), **changes)
  ours = our_grpo(cfg)
  assert_same(ours, trl_grpo(**theirs))
  assert 0 < ours[2]['clip_fraction'] < 1
  assert 0 < ours[2].get('dropped', 0.5) < 1


def test_trl_counts_sequences_without_a_token():
  """Its grpo divides by six rows where five have tokens; ours by five."""
  mask = MASK & (np.arange(B) != 3)[:, None]
  ours = our_grpo(dataclasses.replace(OURS, clip=Clip(0.2, 0.28), aggregate=SequenceMean()), mask)
  theirs = trl_grpo('grpo', mask)
  assert_same(ours, (theirs[0] * 6 / 5, theirs[1] * 6 / 5))


def test_contract_10_trl_s_group_std_has_one_degree_of_freedom_less():
  """Ours has 1/G: larger advantages by √(G/(G−1)), here 1.15; the eps differ too (1e-6, 1e-4)."""
  from trl.trainer.utils import nanstd

  reward_PG = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
  std_P1 = nanstd(torch.as_tensor(reward_PG), dim=1)[:, None].numpy()
  theirs = (reward_PG - reward_PG.mean(axis=1, keepdims=True)) / (std_P1 + 1e-4)
  ours = group_advantages(jnp.asarray(reward_PG), Std(eps=1e-4 * np.sqrt(3 / 4)))
  np.testing.assert_allclose(ours, theirs * np.sqrt(4 / 3), rtol=1e-5)


def test_rloo_on_policy_has_trl_s_gradient():
  """TRL's ratio is that of a whole sequence: on-policy it has the gradient of the token sum."""
  reward_PG = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
  adv_B = np.array(group_advantages(jnp.asarray(reward_PG), LeaveOneOut())).reshape(-1)
  logits = torch.tensor(LOGITS, requires_grad=True)
  entropies = torch.zeros(B, L)
  self = trainer(
    _get_per_token_logps_and_entropies=lambda *_, **__: (torch_logps(logits), entropies, None),
    epsilon_low=0.2, epsilon_high=0.2,
  )  # fmt: skip
  mask = torch.as_tensor(MASK).int()
  trl.RLOOTrainer._compute_loss(self, None, {
    'prompt_ids': torch.zeros(B, 1, dtype=int), 'prompt_mask': torch.ones(B, 1, dtype=int),
    'completion_ids': torch.as_tensor(IDS), 'completion_mask': mask,
    'advantages': torch.as_tensor(adv_B), 'old_logps': (torch_logps(LOGITS) * mask).sum(1),
  }).backward()  # fmt: skip
  cfg = GRPO(beta=0, scale=LeaveOneOut(), aggregate=ConstantLength(1))

  def f(x):
    old = jax_logps(LOGITS)
    (total, weight), _ = grpo.loss(
      jax_logps(x), old, None, jnp.asarray(adv_B), jnp.asarray(MASK), cfg
    )
    return total / weight

  got = jax.jit(jax.grad(f))(LOGITS)
  np.testing.assert_allclose(got, logits.grad.numpy(), rtol=1e-5, atol=1e-5)


def trl_dpo(loss_type, rows, beta=0.3):
  """TRL's DPO loss, its metrics and its gradient; the first half of the rows is chosen."""
  logits = torch.tensor(LOGITS[rows], requires_grad=True)
  mask = torch.as_tensor(MASK[rows]).int()
  padded = torch.cat([torch.zeros(len(rows), 1, dtype=int), mask], 1)
  logps = torch_logps(logits, IDS[rows]) * mask
  outputs = SimpleNamespace(
    log_probs=logps, entropy=logps, mean_logits=logps, is_top1=mask.bool(), aux_loss=None
  )
  chosen, rejected = (torch_logps(REF, IDS)[torch.as_tensor(rows)] * mask).sum(1).chunk(2)
  self = trainer(
    ld_alpha=None, precompute_ref_logps=True, f_divergence_type='reverse_kl', beta=beta,
    loss_types=[loss_type], loss_weights=[1.0], label_smoothing=0.1, use_weighting=False,
    _total_train_tokens=0, _tp_size=1,
  )  # fmt: skip
  inputs = {
    'input_ids': torch.zeros(len(rows), L + 1, dtype=int), 'attention_mask': padded,
    'completion_mask': padded, 'ref_chosen_logps': chosen, 'ref_rejected_logps': rejected,
  }  # fmt: skip
  loss = trl.DPOTrainer._compute_loss(self, lambda **_: outputs, inputs, False)
  loss.backward()
  metrics = {name: x[-1] for name, x in self._metrics['eval'].items()}
  return loss.item(), logits.grad.numpy(), metrics


def our_dpo(cfg, rows):
  """Our loss, metrics and gradient of the same rows."""

  def f(logits):
    logp_B, ref_B = (
      jnp.where(MASK[rows], jax_logps(x, IDS[rows]), 0).sum(1) for x in (logits, REF[rows])
    )
    sides = zip(*(jnp.split(jnp.asarray(x), 2) for x in (logp_B, ref_B, LENGTH[rows])))
    (total, weight), metrics = dpo.loss(*(Scored(*side) for side in sides), cfg)
    return total / weight, metrics

  (loss, metrics), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(LOGITS[rows])
  return loss, grad, {name: np.divide(*x) for name, x in metrics.items()}


@pytest.mark.parametrize(
  'loss_type, cfg',
  [
    ('sigmoid', DPO(0.3)),
    ('ipo', DPO(0.3, IPO(), PerToken())),
    ('sigmoid_norm', DPO(0.3, Sigmoid(), PerToken())),
  ],
)
def test_dpo_is_trl_s(loss_type, cfg):
  rows = np.arange(B)
  ours, theirs = our_dpo(cfg, rows), trl_dpo(loss_type, rows)
  assert_same(ours[:2], theirs[:2])
  names = {'margin': 'margins', 'chosen_reward': 'chosen', 'rejected_reward': 'rejected'}
  names |= {'accuracy': 'accuracies'}
  if cfg.score != PerToken():
    for name, trl_name in names.items():
      np.testing.assert_allclose(ours[2][name], theirs[2][f'rewards/{trl_name}'], rtol=1e-5)


@pytest.mark.parametrize('rows', [[0, 1], [2, 5], [4, 3]])
def test_label_smoothing_is_trl_s(rows):
  """TRL has it in `aot`, which sorts the batch: with one pair it is conservative DPO."""
  rows = np.array(rows)
  assert_same(our_dpo(DPO(0.3, Sigmoid(0.1)), rows)[:2], trl_dpo('aot', rows)[:2])


@pytest.mark.parametrize('margin', [None, np.array([0.5, 0.0, 1.5], np.float32)])
@pytest.mark.parametrize('center', [None, 0.01])
def test_the_pairwise_reward_loss_is_trl_s(margin, center):
  reward_B = np.random.default_rng(1).normal(size=B).astype(np.float32)
  rewards = torch.tensor(reward_B[:, None], requires_grad=True)
  self = trainer(
    args=SimpleNamespace(center_rewards_coefficient=center), _total_train_tokens=0, _tp_size=1
  )
  inputs = {} if margin is None else {'margin': torch.as_tensor(margin)}
  model = lambda **_: SimpleNamespace(logits=rewards)
  loss = trl.RewardTrainer.compute_loss(self, model, inputs)
  loss.backward()

  def f(x):
    m = None if margin is None else jnp.asarray(margin)
    (total, n), metrics = reward_model.pairwise(
      x[:3], x[3:], reward_model.Pairwise(center or 0.0), m
    )
    return total / n, metrics

  (got, metrics), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(reward_B)
  assert_same((got, grad), (loss.item(), rewards.grad.numpy()[:, 0]))
  for name in ('accuracy', 'margin'):
    np.testing.assert_allclose(np.divide(*metrics[name]), self._metrics['eval'][name], rtol=1e-5)


@pytest.mark.parametrize(
  'beta, how', [(0.0, distill.Forward()), (1.0, distill.Reverse()), (0.3, distill.Jensen(0.3))]
)
def test_distillation_is_trl_s(beta, how):
  """GKD's loss times T², which TRL leaves out."""
  from trl.experimental.gkd import GKDTrainer

  student = torch.tensor(LOGITS, requires_grad=True)
  labels = torch.where(torch.as_tensor(MASK), 0, -100)
  loss = GKDTrainer.generalized_jsd_loss(student, torch.as_tensor(REF), labels, beta, 1.7)
  loss.backward()

  def f(x):
    cfg = distill.Distill(how, temperature=1.7)
    (total, weight), _ = distill.full(x, jnp.asarray(REF), jnp.asarray(MASK), cfg)
    return total / weight / 1.7**2

  assert_same(jax.jit(jax.value_and_grad(f))(LOGITS), (loss.item(), student.grad.numpy()))
