"""DeepSeek-V2 and V3 in float64 NumPy, on public names and config.json: the oracle for them.

Follows DeepSeek's reference inference code (github.com/deepseek-ai/DeepSeek-V3, inference/model.py
at b15f0db) where public implementations part; `Choices` are the other ways, so that a test can show
that one of them gives other numbers. That code leaves the prediction module out; here it is as vLLM
(deepseek_mtp.py) and SGLang (deepseek_nextn.py) run the public weights: the embedding first in
eh_proj, the hidden state after the main model's final norm. Keys and values are expanded, every
expert computes every token: slow and plain.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Choices:
  """What public implementations do differently; the defaults are DeepSeek's."""

  closed: float = -np.inf  # score of an expert in a closed group; elsewhere 0
  bias: type = np.float32  # elsewhere the selection bias is cast to ml_dtypes.bfloat16
  mscale: bool = True  # YaRN's factor of the softmax; elsewhere left out
  interleaved: bool = True  # rotates (0, 1), (2, 3), …; elsewhere (0, P/2), (1, P/2 + 1), …
  embedding_first: bool = True  # in eh_proj; the paper writes the hidden state first
  final_norm: bool = True  # of the hidden state that the prediction module sees


class Output(NamedTuple):
  """ids: experts chosen by layer number; states: the residual stream after each block."""

  logits_BLV: np.ndarray
  states_BLD: list[np.ndarray]
  ids_BLA: dict[int, np.ndarray]
  mtp_BLV: np.ndarray | None


class DeepSeek:
  """The model of a public config and {public name: array}."""

  def __init__(
    self, config: Mapping[str, Any], weights: Mapping[str, np.ndarray], choices: Choices = Choices()
  ):
    self.config, self.choices = config, choices
    self.weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}

  def __call__(self, tokens_BL: np.ndarray, ahead_BL: np.ndarray | None = None) -> Output:
    """ahead: the token after each of `tokens`, for the prediction module."""
    table_VD, count = self.weights['model.embed_tokens.weight'], self.config['num_hidden_layers']
    x_BLD, states, ids = table_VD[tokens_BL], [], {}
    for n in range(count):
      x_BLD, chosen = self.block(f'model.layers.{n}', x_BLD)
      states.append(x_BLD)
      ids |= {} if chosen is None else {n: chosen}
    normed_BLD = self.norm('model.norm', x_BLD)
    mtp = None
    if ahead_BL is not None:
      hidden_BLD = normed_BLD if self.choices.final_norm else x_BLD
      mtp = self.prediction(f'model.layers.{count}', hidden_BLD, table_VD[ahead_BL])
    return Output(self.linear('lm_head', normed_BLD), states, ids, mtp)

  def prediction(self, at: str, hidden_BLD: np.ndarray, ahead_BLD: np.ndarray) -> np.ndarray:
    """Logits of the token after the one ahead, which stands at its own place, one further on."""
    halves = self.norm(f'{at}.enorm', ahead_BLD), self.norm(f'{at}.hnorm', hidden_BLD)
    halves = halves if self.choices.embedding_first else halves[::-1]
    x_BLD = self.linear(f'{at}.eh_proj', np.concatenate(halves, -1))
    x_BLD, _ = self.block(at, x_BLD, first=1)
    return self.linear('lm_head', self.norm(f'{at}.shared_head.norm', x_BLD))

  def block(
    self, at: str, x_BLD: np.ndarray, first: int = 0
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """The stream after a layer and the experts chosen; first: the position of the first token."""
    h_BLD = self.norm(f'{at}.input_layernorm', x_BLD)
    x_BLD = x_BLD + self.attention(f'{at}.self_attn', h_BLD, first)
    h_BLD = self.norm(f'{at}.post_attention_layernorm', x_BLD)
    if f'{at}.mlp.gate.weight' not in self.weights:
      return x_BLD + self.swiglu(f'{at}.mlp', h_BLD), None
    ids_BLA, gates_BLA = self.route(f'{at}.mlp.gate', h_BLD)
    y_BLD = self.swiglu(f'{at}.mlp.shared_experts', h_BLD)
    for e in range(self.config['n_routed_experts']):
      gate_BL = (gates_BLA * (ids_BLA == e)).sum(-1)
      y_BLD = y_BLD + gate_BL[..., None] * self.swiglu(f'{at}.mlp.experts.{e}', h_BLD)
    return x_BLD + y_BLD, ids_BLA

  def attention(self, at: str, x_BLD: np.ndarray, first: int) -> np.ndarray:
    """MLA; kv_b_proj's rows are, head by head, the keys' and then the values'."""
    c, (B, L, _) = self.config, x_BLD.shape
    N, H, P = c['num_attention_heads'], c['qk_nope_head_dim'], c['qk_rope_head_dim']
    if c['q_lora_rank'] is None:
      q = self.linear(f'{at}.q_proj', x_BLD)
    else:
      q = self.norm(f'{at}.q_a_layernorm', self.linear(f'{at}.q_a_proj', x_BLD))
      q = self.linear(f'{at}.q_b_proj', q)
    q_BLNH, q_BLNP = np.split(q.reshape(B, L, N, H + P), [H], -1)
    down = self.linear(f'{at}.kv_a_proj_with_mqa', x_BLD)
    latent_BLR, k_BLP = np.split(down, [c['kv_lora_rank']], -1)
    up = self.linear(f'{at}.kv_b_proj', self.norm(f'{at}.kv_a_layernorm', latent_BLR))
    k_BMNH, v_BMNV = np.split(up.reshape(B, L, N, H + c['v_head_dim']), [H], -1)
    k_BMP = self.rotate(k_BLP[:, :, None], first)[:, :, 0]
    s_BNLM = np.einsum('BLNH,BMNH->BNLM', q_BLNH, k_BMNH)
    s_BNLM = s_BNLM + np.einsum('BLNP,BMP->BNLM', self.rotate(q_BLNP, first), k_BMP)
    s_BNLM = np.where(np.tri(L, dtype=bool), s_BNLM * self.softmax_scale(), -np.inf)
    o_BLNV = np.einsum('BNLM,BMNV->BLNV', softmax(s_BNLM), v_BMNV)
    return self.linear(f'{at}.o_proj', o_BLNV.reshape(B, L, -1))

  def extended(self) -> bool:
    """Whether YaRN acts: only where the context is longer than the original one."""
    yarn = self.config['rope_scaling']
    longest = self.config['max_position_embeddings']
    return yarn is not None and longest > yarn['original_max_position_embeddings']

  def softmax_scale(self) -> float:
    """width^-½, times mscale² in an extended context."""
    c = self.config
    scale = (c['qk_nope_head_dim'] + c['qk_rope_head_dim']) ** -0.5
    if not (self.extended() and self.choices.mscale):
      return scale
    yarn = c['rope_scaling']
    return scale * (0.1 * yarn['mscale'] * math.log(yarn['factor']) + 1) ** 2

  def frequencies(self) -> np.ndarray:
    """Radians a position: slow waves are slowed by the factor, fast ones kept."""
    theta, P = self.config['rope_theta'], self.config['qk_rope_head_dim']
    omega_p = theta ** -(np.arange(0, P, 2) / P)
    if not self.extended():
      return omega_p
    yarn = self.config['rope_scaling']
    edges = []
    for turns in (yarn['beta_fast'], yarn['beta_slow']):
      wavelength = yarn['original_max_position_embeddings'] / (turns * 2 * math.pi)
      edges.append(P * math.log(wavelength) / (2 * math.log(theta)))
    low, high = max(math.floor(edges[0]), 0), min(math.ceil(edges[1]), P - 1)
    high = high + 0.001 if low == high else high
    slow_p = np.clip((np.arange(P // 2) - low) / (high - low), 0, 1)
    return omega_p / yarn['factor'] * slow_p + omega_p * (1 - slow_p)

  def rotate(self, x_BLNP: np.ndarray, first: int) -> np.ndarray:
    """Pairs as complex numbers, turned by position · frequency."""
    angle_Lp = np.outer(first + np.arange(x_BLNP.shape[1]), self.frequencies())
    pairs = (x_BLNP[..., ::2], x_BLNP[..., 1::2])
    if not self.choices.interleaved:
      pairs = np.split(x_BLNP, 2, -1)
    z_BLNp = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angle_Lp)[:, None]
    if not self.choices.interleaved:
      return np.concatenate([z_BLNp.real, z_BLNp.imag], -1)
    return np.stack([z_BLNp.real, z_BLNp.imag], -1).reshape(x_BLNP.shape)

  def route(self, at: str, x_BLD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, gates): chosen by biased scores within the best groups, weighed by unbiased ones."""
    c, logits_BLE = self.config, self.linear(at, x_BLD)
    normalized = c['scoring_func'] == 'sigmoid'
    s_BLE = 1 / (1 + np.exp(-logits_BLE)) if normalized else softmax(logits_BLE)
    biased_BLE, counted = s_BLE, 1
    if c['topk_method'] == 'noaux_tc':
      bias_E = self.weights[f'{at}.e_score_correction_bias'].astype(self.choices.bias)
      biased_BLE, counted = s_BLE + bias_E.astype(np.float64), 2
    if c['topk_method'] != 'greedy' and c['n_group'] > 1:
      grouped = biased_BLE.reshape(*s_BLE.shape[:-1], c['n_group'], -1)
      score_BLG = np.sort(grouped, -1)[..., -counted:].sum(-1)
      worst_BLg = best(score_BLG)[..., c['topk_group'] :]
      np.put_along_axis(mask := np.zeros(score_BLG.shape, bool), worst_BLg, True, -1)
      grouped = np.where(mask[..., None], self.choices.closed, grouped)
      biased_BLE = grouped.reshape(s_BLE.shape)
    ids_BLA = best(biased_BLE)[..., : c['num_experts_per_tok']]
    gates_BLA = np.take_along_axis(s_BLE, ids_BLA, -1)
    if normalized:
      gates_BLA = gates_BLA / gates_BLA.sum(-1, keepdims=True)
    return ids_BLA, gates_BLA * c['routed_scaling_factor']

  def swiglu(self, at: str, x: np.ndarray) -> np.ndarray:
    """silu(gate) · up, projected back."""
    gate = self.linear(f'{at}.gate_proj', x)
    h = gate / (1 + np.exp(-gate)) * self.linear(f'{at}.up_proj', x)
    return self.linear(f'{at}.down_proj', h)

  def linear(self, at: str, x: np.ndarray) -> np.ndarray:
    """Public matrices have a row an output."""
    return x @ self.weights[f'{at}.weight'].T

  def norm(self, at: str, x: np.ndarray) -> np.ndarray:
    """RMSNorm; its ε is 1e-6, in the latents too, whatever the config says."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * self.weights[f'{at}.weight']


def softmax(x: np.ndarray) -> np.ndarray:
  """Over the last axis."""
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def best(x: np.ndarray) -> np.ndarray:
  """Indices from the largest on; of equals the first."""
  return np.argsort(-x, -1, kind='stable')
