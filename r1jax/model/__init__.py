"""The DeepSeek-V3 family as a functional Flax Linen model.

Legend of axes, the same in every file:
  B batch, L query length, M memory length, D embed, N heads, K kv heads, G group (N/K), H head dim,
  R latent rank, P rope dim, V vocabulary (or value width where a head is meant), F ffw, E experts,
  T tokens (B·L), A active experts, n layers of one stacked run.
"""
