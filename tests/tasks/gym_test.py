"""reasoning-gym as a task: chain_sum exactly, other datasets by their traps."""

import os
import subprocess
import sys

import pytest

from r1jax.core import config
from r1jax.core.errors import UserError
from r1jax.rewards.compose import RewardWeights
from r1jax.rewards.outcome import Grade, Outcome
from r1jax.tasks.gym import Gym, GymTask

QUICK = Gym(
  options=(('min_terms', 3), ('max_terms', 5), ('min_digits', 1), ('max_digits', 1)), style='bare'
)


@pytest.fixture(scope='module')
def quick():
  return GymTask(QUICK)


def completion(answer, thought=''):
  return f'<think>{thought}</think><answer>{answer}</answer>'


def test_splits_are_disjoint_and_only_sft_is_solved(quick):
  sft, rl, held = (quick.examples(s, 0, n) for s, n in (('sft', 300), ('rl', 900), ('eval', 300)))
  texts = [{e.question for e in part} for part in (sft, rl, held)]
  assert len(texts[0]) == len(texts[2]) == 300
  assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
  assert all(e.solution for e in sft)
  assert not any(e.solution for e in rl + held)
  assert len({e.id for e in sft + rl + held}) == 1500


def test_splits_of_different_seeds_and_styles_are_disjoint_too(quick):
  other = GymTask(Gym(options=QUICK.options, seed=1))
  rl = {e.meta['entry']['question'] for e in quick.examples('rl', 0, 3000)}
  assert not rl & {e.question for e in other.examples('eval', 0, 500)}
  assert quick.examples('rl', 0, 1)[0].id != other.examples('rl', 0, 1)[0].id


def test_any_window_of_a_split_is_the_same(quick):
  assert quick.examples('eval', 5, 4) == GymTask(QUICK).examples('eval', 0, 9)[5:]


def test_every_process_makes_the_same_examples(quick):
  program = (
    'from r1jax.tasks.gym import *; from r1jax.core import config, text;'
    'import sys; task = GymTask(config.from_json(Gym, sys.argv[1]));'
    'print([(e.id, e.question, e.answer, e.solution) for e in task.examples("sft", 0, 20)])'
  )
  printed = subprocess.run(
    [sys.executable, '-c', program, config.to_json(QUICK)],
    env=os.environ | {'PYTHONHASHSEED': '7'},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  mine = [(e.id, e.question, e.answer, e.solution) for e in quick.examples('sft', 0, 20)]
  assert printed == f'{mine}\n'


def test_styles(quick):
  [bare] = quick.examples('eval', 0, 1)
  [plain] = GymTask(Gym(options=QUICK.options)).examples('eval', 0, 1)
  assert plain.question.endswith(f'arithmetic problem: {bare.question} =')
  assert (plain.answer, plain.id) == (bare.answer, bare.id)


def test_worked_solutions_earn_everything(quick):
  for e in quick.examples('sft', 0, 50):
    assert quick.grade(e, completion(e.answer, e.solution)) == Grade(
      Outcome.CORRECT, 1.0, {'accuracy': 1.0, 'format': 1.0, 'language': 1.0}
    )


@pytest.mark.parametrize('form', ['{}', ' {} ', '{}.0', '{}\n', '{},'])
def test_spellings_of_the_right_number(quick, form):
  [e] = quick.examples('eval', 0, 1)
  assert quick.grade(e, completion(form.format(e.answer))).outcome is Outcome.CORRECT


@pytest.mark.parametrize('form', ['{} or 6', '{}{}', '{}x', 'x', '={}', '{}.1', 'nan', '9' * 9999])
def test_contract_08_junk_is_wrong(quick, form):
  [e] = quick.examples('eval', 0, 1)
  grade = quick.grade(e, completion(form.format(e.answer, e.answer)))
  assert (grade.outcome, grade.reward) == (Outcome.WRONG, 0.0)


@pytest.mark.parametrize('text', ['', '{}', '<answer>{}</answer>', '<think></think>{}'])
def test_contract_08_no_answer_is_unparseable(quick, text):
  [e] = quick.examples('eval', 0, 1)
  text = text.format(e.answer)
  assert quick.grade(e, text).outcome is Outcome.UNPARSEABLE
  for empty in (completion(''), completion(' '), completion(e.answer) + 'x'):
    assert quick.grade(e, empty).outcome is Outcome.UNPARSEABLE


def test_contract_09_a_truncated_completion_is_not_correct(quick):
  [e] = quick.examples('eval', 0, 1)
  whole = completion(e.answer)
  assert all(quick.grade(e, whole[:n]).outcome is Outcome.UNPARSEABLE for n in range(len(whole)))


def test_weights(quick):
  task = GymTask(Gym(options=QUICK.options, weights=RewardWeights(1.0, 0.5, 0.25, 'zh')))
  [e] = task.examples('rl', 0, 1)
  assert task.grade(e, completion(e.answer, '我 know')).reward == pytest.approx(1.625)


def test_contract_08_scorers_that_take_anything_for_false_ask_for_the_gold():
  task = GymTask(Gym('game_of_life_halting'))
  golds = {e.answer: e for e in task.examples('rl', 0, 40)}
  said = {(g, a): task.grade(golds[g], completion(a)).outcome for g in golds for a in (g, 'junk')}
  assert said == {
    ('True', 'True'): Outcome.CORRECT,
    ('False', 'False'): Outcome.CORRECT,
    ('True', 'junk'): Outcome.WRONG,
    ('False', 'junk'): Outcome.WRONG,
  }


def test_contract_08_scorers_that_raise_or_give_junk_points():
  task = GymTask(Gym('prime_factorization'))
  [e] = task.examples('rl', 0, 1)
  assert task.grade(e, completion('banana')).outcome is Outcome.UNPARSEABLE
  assert task.grade(e, completion('7')).outcome is Outcome.WRONG
  assert task.grade(e, completion(e.answer)).outcome is Outcome.CORRECT


def test_datasets_without_a_single_answer():
  task = GymTask(Gym('propositional_logic'))
  [e] = task.examples('sft', 0, 1)
  assert (e.answer, e.solution) == (None, None)
  assert task.grade(e, completion('x')).outcome is not Outcome.CORRECT
  good = completion(e.meta['entry']['metadata']['example_answer'])
  assert task.grade(e, good).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    (Gym('chain_sums'), "no reasoning-gym dataset 'chain_sums'; did you mean 'chain_sum'"),
    (
      Gym(options=(('min_term', 3),)),
      "no option of chain_sum 'min_term'; did you mean 'min_terms'",
    ),
    (Gym(options=(('seed', 3),)), "no option of chain_sum 'seed'"),
    (Gym(options=(('min_terms', 9), ('max_terms', 2))), 'does not take'),
    (Gym(options=(('min_terms', 'x'),)), 'does not take'),
    (Gym(style='bold'), "no style 'bold'"),
    (Gym('countdown', style='bare'), "use 'plain' for countdown"),
    (Gym('codeio'), 'codeio ignores its seed'),
    (Gym(threshold=0.0), 'expected a score in'),
    (Gym(terse=1.5), 'expected a share in'),
  ],
)
def test_errors(spec, message):
  with pytest.raises(UserError, match=message):
    GymTask(spec)


def test_datasets_that_depend_on_the_hash_seed_need_a_fixed_one(monkeypatch):
  monkeypatch.delenv('PYTHONHASHSEED', raising=False)
  with pytest.raises(UserError, match='set PYTHONHASHSEED=0'):
    GymTask(Gym('ransom_note'))
  monkeypatch.setenv('PYTHONHASHSEED', '0')
  assert len(GymTask(Gym('ransom_note')).examples('rl', 0, 3)) == 3


def test_untaught_models_are_read_by_their_last_number():
  task = GymTask(Gym('chain_sum', form='last_number'))
  e = task.examples('eval', 0, 1)[0]
  assert task.grade(e, f'Adding up, the answer is {e.answer}.').outcome is Outcome.CORRECT
  assert task.grade(e, f'{e.answer} and then 99999').outcome is Outcome.WRONG
  assert task.grade(e, 'no idea').outcome is Outcome.UNPARSEABLE
