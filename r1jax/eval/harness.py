"""The standard harness (lm_eval) on our models: `pip install 'r1jax[eval]'`.

    lm = language_model(params, cfg, tok, engine, context=8192)
    run(lm, ['hellaswag', 'gsm8k'], limit=100)  ->  {'gsm8k': {'exact_match,strict-match': 0.43, …

loglikelihood and its rolling form go through engine/score.py, generate_until through the engine.
How a context and its continuation are cut into tokens, how rolling windows lie and how too long
inputs lose their left end is the harness' own code or does as its class for transformers does
(lm_eval/models/huggingface.py, 0.4.13), so that figures compare. Control tokens in a completion are
no text, as there; sampling has no top-k unless the task says so (there: 50).

A completion ends with its first `until` string: what is not asked for is not written.

Chats. The harness passes prompts as text, where a question that spells '<|im_end|>' could forge a
turn. A rendered chat is therefore remembered with its tokens, and its text looked up again; two
chats of one text but other tokens are refused.

Offline: a task in a folder of one's own needs no network when its YAML says `dataset_path: json`
and `dataset_kwargs: {data_files: {test: /path/to/file.jsonl}}`; for tasks whose data are in the
cache of `datasets` already, set HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1 before Python starts.

lm_eval is imported where it is used: without it this module imports, and the functions say what to
install.
"""

import dataclasses
import importlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from r1jax.core import prng
from r1jax.core.errors import UserError, nearest, no_such
from r1jax.core.program import Announce, silent
from r1jax.engine.batch import Batches, Paged
from r1jax.engine.make import AnyEngine
from r1jax.engine.requests import Request
from r1jax.engine.sampling import RequestSampling
from r1jax.engine.score import Scorer
from r1jax.kernels.logprob.truncate import Sampling
from r1jax.model.config import ModelConfig
from r1jax.tokenizers.public import PublicTokenizer
from r1jax.tokenizers.tokenizer import BOS, Tokenizer

Messages = Sequence[Mapping[str, str]]  # [{'role': 'user', 'content': '…'}, …]
LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')
OPTIONS = (*LIMITS, 'until', 'do_sample', 'temperature', 'top_p', 'top_k')
LOG = logging.getLogger(__name__)
RESAMPLES = 1000  # of the harness' bootstrap, where a figure's error has no closed form


@dataclasses.dataclass(frozen=True)
class Generation:
  """What a task asks of a completion: the first of `until` that occurs ends it."""

  until: tuple[str, ...]
  limit: int
  sampling: Sampling


def generation(options: Mapping[str, Any], limit: int = 256) -> Generation:
  """From a task's generation_kwargs; greedy unless do_sample or a temperature says otherwise."""
  for name in options:
    if name not in OPTIONS:
      raise UserError(f'{no_such("generation option", name, OPTIONS)}: change generation_kwargs')
  until = options.get('until') or []
  until = (until,) if isinstance(until, str) else tuple(until)
  limit = next((int(options[name]) for name in LIMITS if options.get(name) is not None), limit)
  heat = float(options.get('temperature') or 0.0)
  drawn = options.get('do_sample')
  drawn = heat > 0 if drawn is None else drawn
  try:
    sampling = Sampling(heat, int(options.get('top_k') or 0), float(options.get('top_p') or 1.0))
    if limit < 1 or (drawn and not heat):
      raise ValueError('need a token to generate at least, and a temperature > 0 to sample')
  except ValueError as e:
    raise UserError(f'generation_kwargs are {dict(options)}: {e}') from e
  return Generation(until, limit, sampling if drawn else Sampling(temperature=0.0))


def conversation(tok: Tokenizer) -> Callable[[Messages], list[int]]:
  """Renders chats up to the answer: by a public model's template, or one question by its prompt."""

  def one_question(messages: Messages) -> list[int]:
    roles = [m['role'] for m in messages]
    if roles not in (['user'], ['system', 'user']):
      raise UserError(
        f'a chat of the roles {", ".join(roles)}: this model takes one user message, with or '
        'without a system message before it; set shots=0 (--lm_eval_shots=0)'
      )
    system = messages[0]['content'] if len(messages) > 1 else None
    return tok.prompt(messages[-1]['content'], system)

  return tok.messages if isinstance(tok, PublicTokenizer) else one_question


def beginning(tok: Tokenizer) -> list[int]:
  """What every text begins with: bos where a public model's files say so."""
  return tok.encode_special(BOS) if isinstance(tok, PublicTokenizer) else []


class Answers:
  """Answers to the harness' requests; `language_model` joins them with its base class."""

  def __init__(
    self,
    params: Any,
    cfg: ModelConfig,
    tok: Tokenizer,
    engine: AnyEngine,
    *,
    context: int = 2048,
    add_bos: bool | None = None,
    slots: int = 8192,
    seed: int = 0,
    announce: Announce = silent,
  ):
    """context: most tokens of an input; add_bos: begin texts with bos, if given, or never.

    slots: tokens of a batch that is scored, with padding; what writes has the engine's sizes.
    """
    super().__init__()
    if tok.vocab > cfg.vocab:
      raise UserError(
        f'the tokenizer has {tok.vocab} tokens, the model {cfg.vocab}: give the model its own'
      )
    self.max_length = context
    spec = engine.spec if isinstance(engine, Batches) else Paged()
    # One of its own: it stops at strings, and what is text of them is told here.
    self._engine = Batches(spec, cfg, engine.stops, engine.mesh, announce, self._read, routes=False)
    self._params, self._tok = params, tok
    self._begin = beginning(tok) if add_bos is None else [self.prefix_token_id] * add_bos
    self._render, self._seed = conversation(tok), seed
    self._chats: dict[str, list[int]] = {}
    self._told = False  # that the template refuses system messages
    self._scorer = Scorer(cfg, engine.mesh, announce, slots)

  @property
  def eot_token_id(self) -> int:
    """What ends a text."""
    return self._tok.eos

  @property
  def prefix_token_id(self) -> int:
    """What stands before a text without context."""
    return self._tok.eos if self._tok.bos is None else self._tok.bos

  @property
  def tokenizer_name(self) -> str:
    """Names the tokenizer in the harness' cache of requests."""
    return f'{type(self._tok).__name__}-{self._tok.vocab}'

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **options: Any
  ) -> list[int]:
    """Ids of a text, or of a chat that was rendered to it."""
    del options
    if string in self._chats:
      return self._chats[string]
    return [*([] if add_special_tokens is False else self._begin), *self._tok.encode(string)]

  def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Blanks at the context's end go to the continuation; texts are encoded whole and cut."""
    if context not in self._chats:
      return super()._encode_pair(context, continuation)
    ids, blanks = list(self._chats[context]), ''
    while ids and (last := self._tok.decode(ids[-1:])).isspace():
      ids, blanks = ids[:-1], last + blanks
    return ids, self._tok.encode(blanks + continuation)

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
  ) -> list[tuple[float, bool]]:
    """(log-probability, whether greedy decoding gives it) of continuations after their contexts."""
    del options
    rows = []
    for text, context, continuation in requests:
      if not 0 < len(continuation) <= self.max_length:
        raise UserError(
          f'the continuation of {text} has {len(continuation)} tokens; expected 1 to '
          f'{self.max_length}: change the task, or give a larger context (--lm_eval_context)'
        )
      rows.append([*(context or [self.prefix_token_id]), *continuation][-(self.max_length + 1) :])
    return [
      (float(made.logp[-len(wanted) :].sum()), bool(made.greedy[-len(wanted) :].all()))
      for made, (*_, wanted) in zip(self._scorer(self._params, rows), requests)
    ]

  def loglikelihood_rolling(self, requests: Sequence[Any], **options: Any) -> list[float]:
    """Log-probability of whole texts, window by window; each token is predicted once."""
    del options
    utils = _lm_eval('utils')
    windows = [
      [
        (None, *utils.make_disjoint_window(window))
        for window in utils.get_rolling_token_windows(
          self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
        )
      ]
      for request in requests
    ]
    made = iter(self._loglikelihood_tokens([w for text in windows for w in text]))
    return [sum(next(made)[0] for _ in text) for text in windows]

  def generate_until(self, requests: Sequence[Any], **options: Any) -> list[str]:
    """Completions, all in one batch; each ends by its own limit and stop strings."""
    del options
    if not requests:
      return []
    asked = [(r.args[0], generation(r.args[1])) for r in requests]
    key_B = prng.fold_rows(jax.random.key(self._seed), np.arange(len(asked)))
    rows = []
    for (text, g), seed in zip(asked, np.asarray(jax.random.key_data(key_B)).tolist()):
      sampling = RequestSampling(g.sampling.temperature, g.sampling.top_k, g.sampling.top_p)
      stops = tuple(filter(None, g.until))
      prompt = tuple(self._prompt(text, g.limit))
      rows.append(Request(prompt, g.limit, tuple(seed), sampling, stops=stops))
    longest = max(len(r.prompt) + r.limit for r in rows)
    done = self._engine.complete(self._params, rows, longest)
    return [self._text(c.tokens.tolist(), g.until) for c, (_, g) in zip(done, asked)]

  def _prompt(self, text: str, limit: int) -> list[int]:
    """Ids that leave room for the completion; too long ones lose their left end."""
    room = self.max_length - limit
    if room < 1:
      raise UserError(
        f'max_gen_toks={limit} leaves no room for a prompt in a context of {self.max_length} '
        'tokens: lower it, or give a larger context (--lm_eval_context)'
      )
    return (self.tok_encode(text) or [self.prefix_token_id])[-room:]

  def _read(self, ids: Iterable[int]) -> str:
    """Text without control tokens and ids that only the model has."""
    tok = self._tok
    return tok.decode(i for i in ids if i < tok.vocab and i not in tok.special)

  def _text(self, ids: list[int], until: Sequence[str]) -> str:
    """The same, up to the first of `until`."""
    text = self._read(ids)
    for stop in filter(None, until):
      text = text.split(stop)[0]
    return text

  def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
    """The chat as text; without a generation prompt its last message opens the answer."""
    asked = chat_history if add_generation_prompt else chat_history[:-1]
    opened = '' if add_generation_prompt else chat_history[-1]['content']
    ids = [*self._rendered(asked), *self._tok.encode(opened)]
    text = self._tok.decode(ids)
    if self._chats.setdefault(text, ids) != ids:
      raise UserError(
        f'two chats have the text {text[:60]!r}… and other tokens: a message spells what the '
        'template writes as control tokens; take that problem out of the task'
      )
    return text

  def _rendered(self, messages: Messages) -> list[int]:
    """Ids of a chat; without its system messages where the template refuses them, as there."""
    try:
      return self._render(messages)
    except UserError as e:
      rest = [m for m in messages if m['role'] != 'system']
      if len(rest) == len(messages):
        raise
      ids = self._render(rest)
      if not self._told:
        LOG.warning('%s; such chats are asked without their system messages', e)
      self._told = True
      return ids


def language_model(
  params: Any, cfg: ModelConfig, tok: Tokenizer, engine: AnyEngine, **options: Any
) -> Any:
  """An `lm_eval.api.model.LM` of a model; the options are those of `Answers`."""

  class R1jaxLM(Answers, _lm_eval('api.model').TemplateLM):
    """Our answers under the harness' base class, whose `loglikelihood` cuts texts into tokens."""

  return R1jaxLM(params, cfg, tok, engine, **options)


def run(
  lm: Any,
  tasks: Sequence[str],
  folder: str | os.PathLike[str] | None = None,
  *,
  limit: int | None = None,
  shots: int | None = None,
  chat: bool = False,
) -> dict[str, dict[str, float]]:
  """Figures by task and 'metric,filter' name.

  folder: local YAML tasks, of which alone there is then a choice; limit: problems a task; shots:
  solved examples in a prompt, in place of the task's own number; chat: apply the chat template.
  """
  # Errors of figures are bootstrapped in a pool of forks, and this process holds jax.
  os.environ.setdefault('DISABLE_MULTIPROC', '1')
  where = None if folder is None else os.fspath(folder)
  if folder is not None and not pathlib.Path(folder).is_dir():
    raise UserError(f'{where} is no folder; give one of YAML tasks (--lm_eval_folder)')
  manager = _lm_eval('tasks').TaskManager(include_path=where, include_defaults=folder is None)
  for name in tasks:
    if name not in manager.all_tasks:
      guess = nearest(name, manager.all_tasks)
      hint = f', did you mean {guess!r}?' if guess else ';'
      known = f'known: {", ".join(manager.all_tasks) or "none"}'
      known = '`lm-eval ls tasks` lists them' if folder is None else known
      raise UserError(f'no task {name!r} in {where or "lm_eval"}{hint} {known}')
  made = _lm_eval('evaluator').simple_evaluate(
    model=lm,
    tasks=list(tasks),
    task_manager=manager,
    num_fewshot=shots,
    limit=limit,
    apply_chat_template=chat,
    bootstrap_iters=RESAMPLES,
    log_samples=False,
  )
  return {
    task: {name: float(x) for name, x in row.items() if ',' in name and isinstance(x, int | float)}
    for task, row in made['results'].items()
  }


def _lm_eval(module: str) -> Any:
  """A module of the harness, or how to install it."""
  try:
    return importlib.import_module(f'lm_eval.{module}')
  except ModuleNotFoundError as e:
    raise UserError(
      f"the harness does not import ({e}); install it by pip install 'r1jax[eval]'"
    ) from e
