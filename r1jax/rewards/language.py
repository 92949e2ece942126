"""Language consistency of R1 (arXiv 2501.12948): words of the target language / all words of the
thought.

    share = n_target / Σ_l n_l,  n_l = Σ_w min(count_w, 4 + distinct/4)

A Han character is a word by itself, as Chinese is not spaced; a word of any other script is a run
of its letters (two at least where single ones are variables). Digits, signs, emoji, code, formulas,
addresses, LaTeX commands and names such as `f(x)` or `max_n` are no words, but Han, kana, Hangul or
Cyrillic letters in code or a formula are. The script decides, and where it is shared:

    Latin   is split over languages as their markers are: function words and words of reasoning
            that the other languages do not have. Two different markers make a language present,
            for the target one is enough; without any the text counts as English.
    Han     is Japanese up to four characters for each run of kana, the rest is Chinese.
    Cyrillic is Russian unless a word has a letter that Russian lacks.

A word counts no more often than the vocabulary allows: 'the the the …' behind a Chinese thought
adds four words, not a thousand. A Latin language without markers here (Polish, Turkish) counts as
English. What stands in closed code fences or formulas is not judged: hold it short by other parts.
A thought without words is consistent: 1. Cost: linear, about 0.1 s for 10⁶ characters.
"""

import re
import typing
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from r1jax.core.errors import UserError, no_such
from r1jax.rewards.words import HAN, KANA, visible

Language = Literal['en', 'zh', 'es', 'fr', 'de', 'it', 'pt', 'ru', 'ja', 'ko']
LANGUAGES: tuple[Language, ...] = typing.get_args(Language)

# Words that are frequent in one of these languages and rare in the others: no 'de', no 'son'.
MARKERS = {
  'en': 'the of and to is that it we you they this these those with from have had were be been not '
  'if then there their which what when where how why because since therefore thus hence let need '
  'first next each any must should would could can does did add get got gives equals number '
  'answer check wait now by at for its our them she his my your more less than into only other '
  'some between after before two three four five seven eight nine ten times divided find solve '
  'subtract multiply remaining left',
  'es': 'el los las pero están cuando entonces también muy más estos eso esto nosotros ellos hasta '
  'luego así aunque ahora después tiene tienen tenemos hacer puede debe cuatro siete ocho nueve '
  'diez respuesta suma sumamos restamos paso según tres hemos había calculamos obtenemos primero',
  'fr': 'nous vous est sont être avons avez fait les aux avec donc alors puisque parce ainsi '
  'cela celui cette ces où moins très aussi encore chaque tous toutes leur leurs notre votre elle '
  'ils elles après deux trois quatre sept huit neuf dix nombre réponse résultat somme vérifions '
  'calculons ajoute soit faut peut doit étape une dans',
  'de': 'der das und ist sind nicht eine einen einem einer wir ich sie zu auf für aus nach dann '
  'wenn weil aber oder auch noch nur wie dass daher deshalb jetzt durch zwischen haben wird werden '
  'kann muss ergibt zuerst zwei drei vier fünf sechs sieben acht neun zehn zahl antwort lösung '
  'ergebnis summe rechnen addieren gleich bei zum zur mit',
  'it': 'gli della delle dei degli nel nella sono essere abbiamo cui perché quindi allora però '
  'anche ancora più meno questo questa questi queste quello senza dopo ogni tutti tutto nostro '
  'loro noi hanno può possiamo tre quattro cinque sette otto dieci risposta risultato somma '
  'calcoliamo otteniamo sommiamo che di',
  'pt': 'uma não ao pela são foi temos tem têm então muito isso isto essa ele eles ela elas nós '
  'você onde agora depois até ainda outro dois três oito dez resposta soma somamos obtemos seja '
  'assim portanto precisamos fazer um em os',
}
_LANGUAGE_OF = {word: name for name, words in MARKERS.items() for word in words.split()}

_LATIN = (
  'A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a'
)
_HANGUL = '\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f'
_CYRILLIC = '\u0400-\u052f'
# Runs may hold combining marks, without which the words of many scripts would fall apart.
_MARKS = '\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff'
_OTHER = rf'[^\W\d_{HAN}{KANA}{_LATIN}{_HANGUL}{_CYRILLIC}]'

_HAN_RUN = re.compile(f'[{HAN}]+')
_KANA_RUN = re.compile(f'[{KANA}]+')
_HANGUL_RUN = re.compile(f'[{_HANGUL}]+')
_CYRILLIC_RUN = re.compile(f'[{_CYRILLIC}][{_CYRILLIC}\u0300-\u036f]+')
_OTHER_RUN = re.compile(rf'{_OTHER}(?:{_OTHER}|[{_MARKS}])+')
_LATIN_RUN = re.compile(rf'(?<![\d_{_LATIN}])[{_LATIN}][{_LATIN}\u0300-\u036f]++(?![\d_(])')
_RUSSIAN = re.compile('[а-яё\u0301]+')

# Each stops where the next one could start: no text makes them quadratic.
_SPEECHLESS = re.compile(
  r'```(?:[^`]++|`(?!``))*+```|`[^`\n]{1,200}+`'
  r'|\$\$[^$]++\$\$|\$(?=\S)[^$\n]{1,200}+(?<=\S)\$(?!\d)'
  r'|\\\[(?:[^\\]++|\\(?![\[\]]))*+\\\]|\\\((?:[^\\]++|\\(?![()]))*+\\\)'
  r'|\\begin\{[^{}]*+\}(?:[^\\]++|\\(?!begin\{|end\{))*+\\end\{[^{}]*+\}'
  r'|https?://\S++'
)
_COMMAND = re.compile(r'\\[A-Za-z]+')
_LETTERS = re.compile(rf'[{_LATIN}]+')


def consistency(thought: str, target: str) -> float:
  """Share of `thought`'s words that are in `target`, one of LANGUAGES."""
  if target not in LANGUAGES:
    raise UserError(no_such('language', target, LANGUAGES))
  words = count(thought, target)
  total = sum(words.values())
  return words[target] / total if total else 1.0


def count(thought: str, target: str = 'en') -> dict[str, float]:
  """Words by language, and those of no language here as 'other'; see above for `target`'s part."""
  text = _speech(thought)
  kana, han = _KANA_RUN.findall(text), ''.join(_HAN_RUN.findall(text))
  cyrillic = _CYRILLIC_RUN.findall(text)
  russian = [w for w in cyrillic if _RUSSIAN.fullmatch(w)]
  japanese = min(1.0, 4 * len(kana) / len(han)) if han else 0.0
  characters = _weight(han)
  words = dict.fromkeys(LANGUAGES, 0.0) | _latin(_LATIN_RUN.findall(text), target)
  return words | {
    'zh': (1 - japanese) * characters,
    'ja': japanese * characters + _weight(kana),
    'ko': _weight(_HANGUL_RUN.findall(text)),
    'ru': _weight(russian),
    'other': _weight(_OTHER_RUN.findall(text)) + _weight(cyrillic) - _weight(russian),
  }


def _speech(thought: str) -> str:
  """The thought in lower case without the Latin letters of code, formulas and addresses."""
  text = _SPEECHLESS.sub(lambda m: _wordless(m[0]), visible(thought))
  return _COMMAND.sub(' ', text).lower()


def _wordless(code: str) -> str:
  return ' ' if code.isascii() else _LETTERS.sub(' ', code)


def _weight(words: Iterable[str]) -> float:
  counts = Counter(words)
  most = 4 + len(counts) / 4
  return float(sum(min(n, most) for n in counts.values()))


def _latin(words: list[str], target: str) -> dict[str, float]:
  """The weight of words of Latin letters, split as the markers are."""
  marks: dict[str, list[str]] = {}
  for word in words:
    if word in _LANGUAGE_OF:
      marks.setdefault(_LANGUAGE_OF[word], []).append(word)
  found = {l: _weight(ws) for l, ws in marks.items() if l == target or len(set(ws)) > 1}
  total, weight = sum(found.values()), _weight(words)
  return {l: weight * n / total for l, n in found.items()} if total else {'en': weight}
