"""Which task: a typed union for configs, and the one place that builds from it."""

from r1jax.core.errors import UserError
from r1jax.tasks.choice import Choice, ChoiceTask
from r1jax.tasks.code import Code, CodeTask
from r1jax.tasks.file import File, load
from r1jax.tasks.gym import Gym, GymTask
from r1jax.tasks.logic import Logic, LogicTask
from r1jax.tasks.maths import Maths, MathsTask
from r1jax.tasks.retrieval import Retrieval, RetrievalTask
from r1jax.tasks.task import Task

TaskSpec = Gym | Maths | Choice | Code | Logic | Retrieval | File


def make(spec: TaskSpec) -> Task:
  """The task that `spec` describes."""
  match spec:
    case Gym():
      return GymTask(spec)
    case Maths():
      return MathsTask(spec)
    case Choice():
      return ChoiceTask(spec)
    case Code():
      return CodeTask(spec)
    case Logic():
      return LogicTask(spec)
    case Retrieval():
      return RetrievalTask(spec)
    case File():
      return load(spec)
    case _:
      kinds = 'Gym(…), Maths(…), Choice(…), Code(…), Logic(…), Retrieval(…) or File(…)'
      raise UserError(f'task is {spec!r}; expected {kinds}')
