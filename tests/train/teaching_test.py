"""Teachers from checkpoints and folders: what they say, in which order, and which are refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from r1jax.algos.distill import Distill
from r1jax.checkpoint.store import FOLDER, Store
from r1jax.core import config, metrics
from r1jax.core.errors import UserError
from r1jax.curate import shards
from r1jax.data.batch import Row
from r1jax.data.mix import Mixture, Part
from r1jax.data.sources import Solved, Worked
from r1jax.model import flops, transformer
from r1jax.model.config import GQA, Dense, Layer, ModelConfig
from r1jax.model.transformer import Transformer, dummy_inputs
from r1jax.optim import optimizer as optim
from r1jax.optim.optimizer import AdamW
from r1jax.optim.schedules import Constant
from r1jax.records.jsonl import Jsonl
from r1jax.sharding import place
from r1jax.sharding.mesh import Mesh
from r1jax.sharding.mesh import make as make_mesh
from r1jax.tokenizers.byte import ByteTokenizer
from r1jax.tokenizers.fingerprint import fingerprint
from r1jax.tokenizers.make import Public
from r1jax.train import state as states
from r1jax.train import step as steps
from r1jax.train import teaching
from r1jax.train.distillation import Distillation, Hidden, Live, Logits, Stored
from r1jax.train.offline import Plan
from tests.published import chat_folder

SMALL = ModelConfig(
  265, 16, (Layer(GQA(2, 1, 8, std=0.2), Dense(32, std=0.2)),) * 2, std=0.3, remat='none'
)
DATA = Mixture((Part(Worked(16)),))
FAST = AdamW(Constant(1e-2))
HOW = Distill(temperature=2.0)


@pytest.fixture(scope='module')
def teacher(experiment, params, tmp_path_factory):
  """A workdir of the experts' model, whose vocabulary is padded beyond the student's."""
  return saved(experiment, params, tmp_path_factory.mktemp('teacher'))


def saved(exp, params, folder):
  """The folder with a checkpoint of the parameters."""
  meta = {'experiment': json.loads(config.to_json(exp)), 'stage': 0, 'step': 3}
  with Store(folder / FOLDER) as store:
    store.save(3, {'params': params}, meta, block=True)
  return str(folder)


@pytest.fixture
def student(experiment, bare):
  """A run of the small dense model."""
  return bare(dataclasses.replace(experiment, model=SMALL, stages=()))


def stage_of(teacher, objective, **more):
  return Distillation(FAST, 3, teacher, objective, lines=4, **more)


def live(teacher, objective, **more):
  return stage_of(Live(teacher, DATA, 48), objective, **more)


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_live_teacher_says_its_likeliest_tokens_of_the_students_ids(
  student, teacher, params, experiment
):
  lesson = teaching.plan(student, live(teacher, Logits(HOW, k=5))).batch(0, None)
  inputs = lesson.batch.inputs
  x_BLD = Transformer(experiment.model).apply({'params': params}, inputs).x_BLD
  z_BLV = np.asarray(x_BLD @ transformer.head(params, experiment.model), 'f8')[..., :265] / 2
  logp_BLV = z_BLV - np.log(np.exp(z_BLV).sum(-1, keepdims=True))
  used = inputs.segments_BL > 0
  want_BLK = np.argsort(-logp_BLV, -1)[..., :5]
  np.testing.assert_array_equal(lesson.ids_BLK[used], want_BLK[used])
  got = np.asarray(lesson.logp_BLK[used])
  np.testing.assert_allclose(got, np.take_along_axis(logp_BLV, want_BLK, -1)[used], atol=1e-4)
  assert lesson.streams == () and inputs.ahead == ()  # the student predicts one token only


def test_a_live_teacher_gives_the_streams_that_are_imitated(student, teacher, params, experiment):
  lesson = teaching.plan(student, live(teacher, Hidden(((0, 1), (1, 0))))).batch(0, None)
  out = Transformer(experiment.model).apply({'params': params}, lesson.batch.inputs)
  want = [transformer.stream(out, experiment.model, i) for i in (1, 0)]
  for got, stream in zip(lesson.streams, want, strict=True):
    np.testing.assert_allclose(got, stream, rtol=1e-4, atol=1e-5)
  assert lesson.ids_BLK is lesson.logp_BLK is None


def test_contract_11_a_lesson_is_a_function_of_seed_and_step(student, teacher):
  first, second = (teaching.plan(student, live(teacher, Logits(k=3))) for _ in range(2))
  found = [first.batch(i, None) for i in range(4)]
  same(second.batch(3, None), found[3])
  same(second.batch(1, None), found[1])  # back again
  tokens = [lesson.batch.inputs.tokens_BL for lesson in found]
  assert (tokens[0] != tokens[1]).any()


def test_figures_count_tokens_and_the_work_of_both_models(student, teacher, experiment):
  plan = teaching.plan(student, live(teacher, Logits(k=3)))
  lesson = plan.batch(0, None)
  tokens = int((np.asarray(lesson.batch.inputs.segments_BL) > 0).sum())
  # Of the teacher by hand: it runs two layers and one head, and no prediction module.
  queries, keys, out = 32 * 2 * 16, 32 * (16 + 8) + 16 * 2 * 16, 2 * 8 * 32
  experts = 3 * 32 * 16 * (experiment.model.layers[0].mlp.shared + 2) + 32 * 4
  seen = 48 * 49 // 2 * 2 * (8 + 8 + 8)
  matrices = 2 * (queries + keys + out + experts) + 32 * 272
  work = flops.training_flops(SMALL, [48]) + 2 * (48 * matrices + 2 * seen)
  assert experiment.model.mtp
  assert plan.figures(lesson) == {'tokens': tokens, 'flops': pytest.approx(work / 48 * tokens)}
  assert isinstance(plan, Plan) and plan.evaluate is None


@pytest.mark.parametrize('objective', [Logits(HOW, k=8), Hidden(((1, 1),), hard=0.0)])
def test_steps_bring_the_student_nearer(student, teacher, objective):
  stage = live(teacher, objective)
  plan, name = teaching.plan(student, stage), {Logits: 'divergence', Hidden: 'layer1/error'}
  params = states.init_params(student.model, 0, None, dummy_inputs(SMALL))
  for head, (module, inputs) in teaching.heads(stage, SMALL).items():
    params[head] = place.init(module, jax.random.key(1), None, *inputs)
  optimizer = optim.make(FAST, params)
  step = jax.jit(steps.make(plan.loss, plan.denominators, optimizer, 0.0))
  state, lesson, found = states.fresh(params, optimizer, None), plan.batch(0, None), []
  for _ in range(8):
    state, measured = step(state, lesson)
    found.append(metrics.finish(measured)[name[type(objective)]])
  assert found[-1] < 0.7 * found[0]


def test_heads_are_projections_into_the_teachers_width(teacher, experiment):
  found = teaching.heads(live(teacher, Hidden(((0, 0), (1, 1)))), SMALL)
  assert list(found) == ['project0', 'project1']
  module, inputs = found['project0']
  shape = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']['weight'].value.shape
  assert shape == (SMALL.embed, experiment.model.embed)
  assert teaching.heads(live(teacher, Logits()), SMALL) == {}


def test_on_a_mesh_the_teacher_says_the_same(student, teacher, bare):
  stage = live(teacher, Logits(k=3))
  want = teaching.plan(student, stage).batch(1, None)
  mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
  run = bare(student.exp, mesh)
  with jax.set_mesh(mesh):
    got = teaching.plan(run, stage).batch(1, None)
  assert got.ids_BLK.sharding.shard_shape(got.ids_BLK.shape)[0] == 1
  used = want.batch.inputs.segments_BL > 0
  np.testing.assert_array_equal(np.asarray(got.ids_BLK)[used], np.asarray(want.ids_BLK)[used])
  got_logp, want_logp = np.asarray(got.logp_BLK)[used], want.logp_BLK[used]
  np.testing.assert_allclose(got_logp, want_logp, rtol=1e-4, atol=1e-5)


@pytest.fixture
def folder(tmp_path):
  """Stored logits of four likeliest tokens at temperature 2."""
  rows = [Row(np.arange(1, n), np.ones(n - 1)) for n in (5, 8, 9, 4)]
  about = shards.About('t', fingerprint(ByteTokenizer()), 4, 2.0, 10)

  def teach(made):
    ids_BLK = made.targets_BL[..., None] + np.arange(4)
    return ids_BLK, -ids_BLK / 9

  shards.write(tmp_path / 'f', about, shards.taught(rows, about, 2, teach))
  return str(tmp_path / 'f')


def test_a_stored_teacher_gives_its_likeliest_k_of_the_steps_lines(student, folder):
  plan = teaching.plan(student, stage_of(Stored(folder), Logits(HOW, k=3)))
  want = shards.Lines(folder).take(8, 4, student.exp.seed, 0)
  got = plan.batch(2, None)
  same(got.batch, want.batch)
  same((got.ids_BLK, got.logp_BLK), (want.ids_BLK[..., :3], want.logp_BLK[..., :3]))
  tokens = (got.batch.inputs.segments_BL > 0).sum()
  work = flops.training_flops(SMALL, [10]) / 10
  assert plan.figures(got) == {'tokens': tokens, 'flops': pytest.approx(work * tokens)}


def test_a_teacher_that_does_not_fit_is_refused(student, teacher, folder, experiment):
  refuse = lambda stage, said: pytest.raises(UserError, match=f'stage distillation: {said}')
  for stage, said in (
    (live(teacher, Logits(k=266)), 'k=266, but .* gives 265; ask for that'),
    (live(teacher, Hidden(((0, 2),))), r'pair \(0, 2\): the teacher has layers 0 … 1'),
    (live(teacher, Hidden(((2, 0),))), r'pair \(2, 0\): the student has layers 0 … 1'),
    (stage_of(Stored(folder), Logits(HOW, k=5)), 'k=5, but .* gives 4; ask for that'),
    (stage_of(Stored(folder), Logits(k=4)), 'temperature 1.0, but .* was stored at 2.0'),
  ):
    with refuse(stage, said):
      teaching.check(stage, SMALL, student.tok)


def test_a_live_teachers_data_is_tried_at_once(student, teacher, tmp_path):
  rows = [{'problem': 'x' * 99, 'solution': 'y', 'answer': 'z'}] * 2
  (tmp_path / 'long').write_text('\n'.join(map(json.dumps, rows)))
  data = Mixture((Part(Solved(Jsonl(str(tmp_path / 'long')))),))
  stage = stage_of(Live(teacher, data, 48), Logits())
  with pytest.raises(UserError, match=r'line \d: \d+ inputs, a line holds 48; raise length'):
    teaching.fingerprints(stage, student.task, student.tok)


def test_different_tokenizers_allow_samples_only(student, params, folder, experiment, tmp_path):
  (tmp_path / 'public').mkdir()
  chat_folder(tmp_path / 'public', ['a b'], vocab=260)
  other = dataclasses.replace(experiment, tokenizer=Public(str(tmp_path / 'public')))
  path = saved(other, params, tmp_path / 'other')
  about = tmp_path / 'f' / 'about.json'
  about.write_text(json.dumps(json.loads(about.read_text()) | {'tokenizer': 'another'}))
  for stage in (
    live(path, Logits()),
    live(path, Hidden(((0, 0),))),
    stage_of(Stored(folder), Logits(HOW, k=4)),
  ):
    with pytest.raises(UserError, match='another tokenizer; different tokenizers allow samples on'):
      teaching.plan(student, stage)
