"""The typed union of tasks, and its place in configs."""

import dataclasses
import pathlib

import pytest

from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.tasks.file import File, FunctionTask
from r1jax.tasks.gym import Gym, GymTask
from r1jax.tasks.make import TaskSpec, make
from r1jax.tasks.maths import Maths, MathsTask


@dataclasses.dataclass(frozen=True)
class Run:
  task: TaskSpec = dataclasses.field(default_factory=Gym)


def test_each_member_makes_its_task(tmp_path):
  (tmp_path / 'p.jsonl').write_text('{"problem": "a", "answer": "1"}')
  example = pathlib.Path(__file__).parent / 'my_task_example.py'
  assert isinstance(make(Gym()), GymTask)
  assert isinstance(make(Maths(str(tmp_path / 'p.jsonl'))), MathsTask)
  assert isinstance(make(File(str(example))), FunctionTask)
  with pytest.raises(UserError, match='expected Gym'):
    make('chain_sum')


@pytest.mark.parametrize(
  'task',
  [Gym(options=(('min_terms', 3), ('allow_negation', True))), Maths('a.jsonl'), File('a.py')],
)
def test_specs_survive_configs(task):
  run = Run(task)
  assert config.from_dict(Run, config.to_dict(run)) == run
  assert config.from_json(Run, config.to_json(run)) == run
