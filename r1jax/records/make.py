"""Which records: a typed union for configs, and the one place that opens them."""

from r1jax.core.errors import UserError
from r1jax.records.jsonl import Jsonl, JsonlRecords
from r1jax.records.parquet import Parquet, ParquetRecords
from r1jax.records.record import Records
from r1jax.records.text_files import TextFileRecords, TextFiles
from r1jax.records.tfds import Tfds, TfdsRecords

RecordSpec = Jsonl | Parquet | Tfds | TextFiles


def make(spec: RecordSpec) -> Records:
  """Opens what `spec` names; UserError for a file that is missing, empty or of another kind."""
  match spec:
    case Jsonl():
      return JsonlRecords(spec)
    case Parquet():
      return ParquetRecords(spec)
    case Tfds():
      return TfdsRecords(spec)
    case TextFiles():
      return TextFileRecords(spec)
    case _:
      raise UserError(
        f'records are {spec!r}; expected Jsonl(…), Parquet(…), Tfds(…) or TextFiles(…)'
      )
