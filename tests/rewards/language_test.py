"""Shares of words by language, and texts that would fool a simple count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1jax.core.errors import UserError
from r1jax.rewards.language import LANGUAGES, MARKERS, consistency, count

HONEST = {
  'en': 'First we add the apples. Tom has 5 and gets 3 more, so there are 8 then.',
  'zh': '首先把苹果加起来。汤姆有5个苹果，又得到3个，所以一共8个。答案是8。',
  'es': 'Primero sumamos las manzanas. Tomás tiene 5 y recibe 3 más, entonces hay 8 en total.',
  'fr': "D'abord nous additionnons les pommes. Tom en a 5, il en reçoit 3, donc il y en a 8 après.",
  'de': 'Zuerst addieren wir die Äpfel. Tom hat 5 und bekommt 3 dazu, also sind es acht.',
  'it': 'Prima sommiamo le mele. Tom ne ha 5 e ne riceve altre 3, quindi sono 8. La risposta è 8.',
  'pt': 'Somamos as maçãs. O Tomás tem 5 e recebe mais 3, então são 8. Portanto a resposta é 8.',
  'ru': 'Сначала сложим яблоки. У Тома было 5 яблок, ему дали ещё 3, значит, всего 8. Ответ: 8.',
  'ja': 'まずりんごを足します。トムは5個持っていて、3個もらうので合計8個です。答えは8です。',
  'ko': '먼저 사과를 더합니다. 톰은 5개를 가지고 있고 3개를 더 받으므로 모두 8개입니다.',
}  # fmt: skip


@pytest.mark.parametrize(
  ('thought', 'en', 'zh'),
  [
    ('', 1.0, 1.0),
    ('4+3=7\n7-2=5', 1.0, 1.0),
    ('so we add them', 1.0, 0.0),
    ('我们相加', 0.0, 1.0),
    ('so 我们 add', 0.5, 0.5),
    ('设 x = \\frac{1}{2}, y = 3', 0.0, 1.0),
    ('we know привет', 2 / 3, 0.0),
    ('naïve Straße', 1.0, 0.0),
    ('ＦＵＬＬ width', 1.0, 0.0),
    ('नमस्ते hello', 0.5, 0.0),
    ('hello\u3000世界!', 1 / 3, 2 / 3),
    ('don\'t "mix" them', 1.0, 0.0),
  ],
)
def test_shares(thought, en, zh):
  assert consistency(thought, 'en') == pytest.approx(en)
  assert consistency(thought, 'zh') == pytest.approx(zh)


@pytest.mark.parametrize('target', LANGUAGES)
def test_honest_thoughts_are_of_their_language_alone(target):
  shares = {written: consistency(text, target) for written, text in HONEST.items()}
  assert shares.pop(target) == 1.0
  assert max(shares.values()) == 0.0


def test_half_and_half():
  for other in ('zh', 'ru', 'ko', 'fr', 'de', 'es'):
    assert 0.2 < consistency(HONEST['en'] + HONEST[other], 'en') < 0.8


def test_markers_belong_to_one_language():
  words = [w for text in MARKERS.values() for w in text.split()]
  assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize(
  'text',
  [
    '```python\nfor apple in apples:\n  total += apple\n```',
    '`max_value` and_so f(x) sin(y)',
    '$$\\text{where total is } x$$ \\[ area = ab \\] \\(cos x\\) $the x$',
    '\\begin{align} total &= x \\end{align}',
    'https://example.org/the/path?of=words',
    '🎉🎉 👨‍👩‍👧 ✓ ∑ ≤ x y z 1 2 3',
    '\u200b\u200b\ufeff',
    'a b c x y',
  ],
)
def test_code_formulas_and_signs_are_no_words(text):
  assert consistency(text + '苹果', 'zh') == 1.0
  assert consistency(text + '苹果', 'en') == 0.0


def test_prices_open_no_formula():
  assert consistency('It costs $5 and the other $6', 'zh') == 0.0


@pytest.mark.parametrize('text', ['```\n# 苹果 total\n```', '$\\text{苹果} = 3$', '`苹果`'])
def test_other_scripts_show_in_code_and_formulas(text):
  assert consistency(text, 'en') == 0.0


def test_zero_width_characters_hide_no_word():
  assert consistency('\u200b'.join('the apples'), 'zh') == 0.0
  assert consistency('苹\u200d果 th\u00ade', 'zh') == pytest.approx(2 / 3)


def test_decomposed_letters():
  assert consistency('apre\u0300s dix e\u0301tapes', 'fr') == 1.0
  assert consistency('\u1112\u1161\u11ab\u1100\u1173\u11af', 'ko') == 1.0


def test_han_is_japanese_beside_kana_only():
  assert consistency('合計は八です', 'ja') == 1.0
  assert consistency('一共有八个苹果在桌子上面', 'ja') == 0.0
  assert consistency('这是日本的の字，在店名里很常见，大家都认识', 'zh') > 0.7


def test_ukrainian_is_not_russian():
  assert consistency('відповідь їхня', 'ru') == 0.0


def test_a_name_makes_no_language():
  assert consistency('Tom drove from Los Angeles to the coast', 'en') == 1.0


@pytest.mark.parametrize('target', LANGUAGES)
def test_repeating_the_question_raises_nothing_above_one(target):
  assert consistency(HONEST[target] * 50, target) == pytest.approx(1.0)


PAD = {'en': 'the of and to ', 'zh': '的是在和', 'fr': 'nous vous les avec ', 'de': 'und der das '}


@pytest.mark.parametrize('target', PAD)
@pytest.mark.parametrize('times', [1, 10, 1000])
def test_padding_does_not_beat_an_honest_thought(target, times):
  """Nor one in which a tenth is foreign."""
  wrong = (HONEST['en'] if target != 'en' else HONEST['zh']) * 3
  mixed = HONEST[target] * 9 + HONEST['ko'][:40]
  padded = consistency(wrong + PAD[target] * times, target)
  assert padded < 0.6 < consistency(mixed, target) < consistency(HONEST[target], target)


@given(st.text(), st.sampled_from(LANGUAGES))
def test_a_share_is_between_0_and_1(thought, target):
  assert 0 <= consistency(thought, target) <= 1


@given(st.lists(st.sampled_from([*HONEST.values()])), st.sampled_from(LANGUAGES))
def test_counts_are_the_whole(thoughts, target):
  words = count(' '.join(thoughts), target)
  assert set(words) == {*LANGUAGES, 'other'}
  assert min(words.values()) >= 0
  assert bool(sum(words.values())) == bool(thoughts)


@given(st.text(alphabet='0123456789+-*/=., \n'))
def test_digits_and_punctuation_are_no_words(thought):
  assert consistency(thought, 'zh') == 1.0


def test_unknown_language():
  with pytest.raises(UserError, match="no language 'xx'; known: en, zh"):
    consistency('', 'xx')
