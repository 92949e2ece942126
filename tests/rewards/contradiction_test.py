"""The contradiction penalty: certain ones only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.rewards.contradiction import penalty


@pytest.mark.parametrize(
  ('thought', 'answer'),
  [
    ('So the answer is 5. We add one. The final answer is 7.', None),
    ('2 + 3 = 5. The answer is 5.', '7'),
    ('The answer is **1,250**.', '1205'),
    ('so \\boxed{5}', '6'),
    ('so $\\boxed{5}$ and \\boxed{6}', '6'),
    ('The answer is 3/4.', '0.5'),
    ('The answer is -3.', '3'),
    ('The answer is 2.5.', '25'),
    ('所以答案是5个苹果。', '6'),
    ('La respuesta es 5.', '6'),
    ('La réponse est 5.', '6'),
    ('Die Antwort lautet 5.', '6'),
    ('La risposta è 5.', '6'),
    ('A resposta é 5.', '6'),
    ('Ответ: 5.', '6'),
    ('だから答えは5です。', '6'),
    ('그래서 답은 5입니다.', '6'),
    ('The a\u200bnswer is 5.', '6'),
  ],
)
def test_contradictions(thought, answer):
  assert penalty(thought, answer) == -1.0


@pytest.mark.parametrize(
  ('thought', 'answer'),
  [
    ('', '5'),
    ('', None),
    ('2 + 3 = 5', '7'),
    ('The answer is 5.', '5'),
    ('The answer is 5.', None),
    ('The answer is 5.', 'five apples'),
    ('The answer is 5. So the answer is 5.', '5.0'),
    ('The answer is 5. Wait, that is not it. The answer is 7.', '7'),
    ('The answer is 5. Hmm, I forgot one: 5 + 1 = 6, wait.', '6'),
    ('The answer is 5, but with the tip it is 6.', '6'),
    ('答案是5。等等，再算一遍，答案是7。', '7'),
    ('If x = 1 the answer is 5.', '7'),
    ("I don't think the answer is 5.", '7'),
    ('Is the answer 5? Or is it that the answer is 5?', '7'),
    ('The answer is 5 + 2.', '7'),
    ('The answer is 5x.', '7'),
    ('The answer is 5**2.', '25'),
    ('The answer is 50%.', '0.5'),
    ('The answer is 5 \\times 10^3', '5000'),
    ('The answer is 3,5.', '3.5'),
    ('The answer is 3.14159.', '3.14'),
    ('The answer is 1/3.', '0.33'),
    ('The answer is 1,250.', '1250'),
    ('The answer is 1/0.', '7'),
    ('答案是5万。', '50000'),
    ('The answer to part (a) is 5. Part (b): the answer is 7.', '7'),
    ('The first answer is 5. For the second question the answer is 7.', '7'),
    ('The answer is 5x. The answer is 7.', '7'),
  ],
)
def test_nothing_is_certain(thought, answer):
  assert penalty(thought, answer) == 0.0


@given(st.text(), st.none() | st.text())
def test_any_text_can_be_read(thought, answer):
  assert penalty(thought, answer) in (-1.0, 0.0)


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_integers(stated, given_):
  assert penalty(f'Thus the answer is {stated}.', str(given_)) == -float(stated != given_)
