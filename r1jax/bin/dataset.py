"""Makes a TFDS dataset (ArrayRecord) of JSON Lines or Parquet, without TensorFlow.

python -m r1jax.bin.dataset --source=problems.jsonl --name=my_problems --folder=data
"""

import pathlib
import time
from collections.abc import Iterator

from absl import flags as absl_flags

from r1jax.bin import flags
from r1jax.core.errors import UserError

SOURCE = absl_flags.DEFINE_string(
  'source', None, 'Path or pattern of the rows: *.jsonl or *.parquet.', required=True
)
NAME = absl_flags.DEFINE_string(
  'name', None, 'Name of the dataset: small letters, digits and _.', required=True
)
FOLDER = absl_flags.DEFINE_string(
  'folder', None, 'Where datasets lie; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.'
)
OVERWRITE = absl_flags.DEFINE_bool('overwrite', False, 'Replaces a dataset of that name.')


def main(overrides: flags.Overrides) -> None:
  """Writes the dataset and prints how a config reads it."""
  from r1jax.records import make, tfds, write

  if overrides:
    raise UserError(f'--config.{overrides[0][0]}: a dataset has no config; see --help')
  if SOURCE.value.endswith('.parquet'):
    spec = make.Parquet(SOURCE.value)
  elif '.jsonl' in pathlib.PurePath(SOURCE.value).suffixes:
    spec = make.Jsonl(SOURCE.value)
  else:
    raise UserError(f'--source={SOURCE.value}: expected a name that ends in .jsonl or .parquet')
  folder = FOLDER.value or tfds.default_folder()
  made = write.write(make.make(spec), NAME.value, folder, OVERWRITE.value, narrate)
  print(f'made {made.folder}: {made.rows} rows, {made.size / 1e6:.1f} MB')
  print('fields: ' + ', '.join(f'{name} ({kind})' for name, kind in sorted(made.fields.items())))
  print(f'a config reads it with: {tfds.Tfds(NAME.value, FOLDER.value)}')


def narrate(stage: str, rows: range) -> Iterator[int]:
  """The same rows, with a line of progress twice a second and at the end."""
  from r1jax.train.progress import Progress

  with Progress(stage, len(rows)) as progress:
    begin = told = time.monotonic()
    for i in rows:
      yield i
      now = time.monotonic()
      if now - told > 0.5 or i + 1 == len(rows):
        told = now
        progress.update(i + 1, rows_per_s=(i + 1) / (now - begin))


if __name__ == '__main__':
  flags.run(main)
