"""A folder of checkpoints: arrays through Orbax, everything else in one JSON file.

    directory/40/tree/…            the arrays (Orbax, OCDBT), each shard written by its own process
    directory/40/checkpoint.json   step, meta, the arrays' shapes and dtypes, the files' sizes

`checkpoint.json` is written last and by rename: it is the commit marker. A folder without it is an
interrupted save and is never taken as latest; a file whose size differs from the one written there
is damage. Both, and a template of other names, shapes or dtypes, are found before anything is read
and raise one line (`CheckpointError`) that says what to do.

Every leaf is a `jax.Array` of at least one element, global when there are several processes (step
counters too); None and empty containers hold no leaf and come from the template. Random keys are
stored as `jax.random.key_data(key)` and made again with `jax.random.wrap_key_data`. Leaves come
back under the shardings of the template, whatever mesh they were written from.
"""

import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from r1jax.core import files
from r1jax.core.errors import UserError

MARKER = 'checkpoint.json'
FOLDER = 'checkpoints'  # of a workdir
TREE = 'tree'


class CheckpointError(UserError):
  """A checkpoint is absent, partial, damaged, or not the one asked for."""


class Store:
  """Saves and restores the steps below one directory, and keeps the newest `keep` of them."""

  def __init__(self, directory: epath.PathLike, keep: int = 3):
    if keep < 1:
      raise CheckpointError(f'a store keeps at least one checkpoint, keep={keep} was given')
    self.directory = epath.Path(directory).expanduser().resolve()
    self.keep = keep

  def steps(self) -> list[int]:
    """The steps with a complete checkpoint, ascending."""
    return [step for step in self._folders() if (self._folder(step) / MARKER).exists()]

  def latest(self) -> int | None:
    """The newest complete step, None when there is none."""
    return max(self.steps(), default=None)

  def save(self, step: int, tree: Any, meta: dict) -> None:
    """Writes a checkpoint and returns once it is complete; steps must ascend.

    Called by every process, with the same arguments. `meta` is whatever JSON holds.
    """
    newest, folder = self.latest(), self._folder(step)
    if newest is not None and step <= newest:
      raise CheckpointError(
        f'step {step} cannot be saved in {self.directory}: it holds step {newest} already; '
        'resume from that, or train in another workdir'
      )
    arrays = _describe(tree)
    _check_leaves(tree)
    text = files.json_text({'step': step, 'meta': meta, 'arrays': arrays})  # fails before writing
    if jax.process_index() == 0 and folder.exists():
      folder.rmtree()  # an interrupted save of the same step
    multihost_utils.sync_global_devices(f'r1jax: step {step} may be written')
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
      orbax.save(folder / TREE, args=ocp.args.PyTreeSave(tree))
    if jax.process_index() == 0:
      sizes = {str(path.relative_to(folder)): path.stat().length for path in _files(folder)}
      files.write_json(folder / MARKER, json.loads(text) | {'files': sizes})
      self._drop_old()
    multihost_utils.sync_global_devices(f'r1jax: step {step} is complete')

  def meta(self, step: int | None = None) -> dict:
    """What `save` was given beside the arrays; reads no array."""
    return self._record(step)['meta']

  def restore(self, template: Any, step: int | None = None, partial: bool = False) -> Any:
    """The tree of a step (the latest by default), placed as the template says.

    template: a pytree of jax.ShapeDtypeStruct (or arrays); a leaf's sharding is where it goes,
      without one it goes to the first device.
    partial: the template may name a part of what was saved, such as {'params': …} alone.
    """
    record = self._record(step)
    step = record['step']
    self._check_files(record)
    self._check_template(record, _describe(template), partial)
    args = jax.tree.map(_placed, template)
    try:
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
        return orbax.restore(
          self._folder(step) / TREE,
          args=ocp.args.PyTreeRestore(template, restore_args=args, partial_restore=partial),
        )
    except (ValueError, KeyError, OSError) as error:  # bytes that cannot be read; not out of memory
      raise self._damaged(step, _first_line(error)) from error

  def _folder(self, step: int) -> epath.Path:
    return self.directory / str(step)

  def _folders(self) -> list[int]:
    if not self.directory.exists():
      return []
    return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

  def _drop_old(self) -> None:
    """Removes complete checkpoints beyond `keep`, the marker first, and older interrupted ones."""
    steps = self.steps()
    for step in self._folders():
      if step not in steps[-self.keep :] and step < steps[-1]:
        (self._folder(step) / MARKER).unlink(missing_ok=True)
        self._folder(step).rmtree()

  def _record(self, step: int | None) -> dict:
    """checkpoint.json of a complete step; raises when there is none."""
    steps = self.steps()
    if step is None and not steps:
      raise CheckpointError(f'no complete checkpoint in {self.directory}: {self._what_is_there()}')
    step = steps[-1] if step is None else step
    if step not in steps:
      raise CheckpointError(f'no complete step {step} in {self.directory}: {self._what_is_there()}')
    try:
      record = json.loads((self._folder(step) / MARKER).read_text())
      if record['step'] == step and all(key in record for key in ('meta', 'arrays', 'files')):
        return record
      raise self._damaged(step, f'{MARKER} is of step {record["step"]} or lacks an entry')
    except (ValueError, KeyError, TypeError, OSError) as error:
      raise self._damaged(step, f'{MARKER}: {_first_line(error)}') from error

  def _what_is_there(self) -> str:
    if not self.directory.exists():
      return 'the folder does not exist; check the path'
    whole, partial = self.steps(), sorted({*self._folders()} - {*self.steps()})
    said = f'it holds {_listed(whole)}' if whole else 'it holds none'
    if partial:
      said += f' and interrupted saves of {_listed(partial)} (no {MARKER})'
    return said + ('; ask for one of the complete ones' if whole else '; train first')

  def _damaged(self, step: int, why: str) -> CheckpointError:
    others = [other for other in self.steps() if other != step]
    mend = f'use step {others[-1]} instead' if others else 'train again'
    return CheckpointError(
      f'checkpoint step {step} in {self.directory} is damaged ({why}); '
      f'remove {self._folder(step)} and {mend}'
    )

  def _check_files(self, record: dict) -> None:
    for name, size in record['files'].items():
      path = self._folder(record['step']) / name
      if not path.exists():
        raise self._damaged(record['step'], f'{name} is missing')
      if (found := path.stat().length) != size:
        raise self._damaged(record['step'], f'{name} has {found} bytes of {size}')

  def _check_template(self, record: dict, given: dict, partial: bool) -> None:
    """Compares names, shapes and dtypes; `partial` forgives what the template does not name."""
    saved = record['arrays']
    names = sorted(given.keys() if partial else given.keys() | saved.keys())
    wrong = [name for name in names if given.get(name) != saved.get(name)]
    if partial and not given:
      wrong = ['the template names no array']
    if wrong:
      shown = '; '.join(
        f'{n} is {saved.get(n, "absent")}, asked for {given.get(n, "nothing")}' for n in wrong[:3]
      )
      more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
      raise CheckpointError(
        f'checkpoint step {record["step"]} in {self.directory} does not fit this model: '
        f'{shown}{more}; use the config it was trained with (its meta holds it)'
      )


def resolve(path: epath.PathLike) -> tuple[epath.Path, int]:
  """(directory, step) of a workdir, its checkpoints folder (their latest step) or a step folder."""
  path = epath.Path(path).expanduser().resolve()
  if not path.exists():
    raise CheckpointError(f'no checkpoint at {path}: it does not exist; check the path')
  if (path / FOLDER).exists():
    path = path / FOLDER
  elif path.name.isdecimal() and ((path / MARKER).exists() or (path / TREE).exists()):
    record = Store(path.parent)._record(int(path.name))
    return path.parent, record['step']
  return path, Store(path)._record(None)['step']


def _describe(tree: Any) -> dict[str, str]:
  """{'params/run0/kernel': 'float32[8, 4]'} of arrays or of their shapes."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_name(path): f'{_dtype(leaf)}{[*getattr(leaf, "shape", ())]}' for path, leaf in leaves}


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _dtype(leaf: Any) -> str:
  return str(getattr(leaf, 'dtype', type(leaf).__name__))


def _check_leaves(tree: Any) -> None:
  """Refuses what Orbax would refuse half-way, or give back as something else."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not isinstance(leaf, jax.Array):
      raise CheckpointError(
        f'{_name(path)} is a {type(leaf).__name__}; a checkpoint holds jax.Arrays: jnp.asarray it'
      )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise CheckpointError(f'{_name(path)} is a random key: save jax.random.key_data of it')
    if leaf.size == 0:
      raise CheckpointError(f'{_name(path)} has shape {leaf.shape}: no elements to save, drop it')


def _placed(leaf: Any) -> ocp.ArrayRestoreArgs:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return ocp.ArrayRestoreArgs(
    sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
  )


def _files(folder: epath.Path) -> list[epath.Path]:
  """Every file below a folder, sorted."""
  entries = sorted(folder.iterdir())
  return [file for e in entries for file in (_files(e) if e.is_dir() else [e])]


def _first_line(error: Exception) -> str:
  text = (str(error).splitlines() or [''])[0]
  return f'{type(error).__name__}: {text[:160]}'


def _listed(steps: list[int]) -> str:
  return 'step ' + ', '.join(map(str, steps))
