"""Units of measure and counting words behind a number: '$', 'cm^2', 'million miles per hour'."""

import re
from fractions import Fraction

_TABLE = """
m: 1 m meter metre, .01 cm centimeter centimetre, 1000 km kilometer kilometre, .001 mm millimeter,
 .3048 ft foot feet, .0254 in inch inches inche, .9144 yd yard, 1609.344 mi mile;
s: 1 s sec second, 60 min minute, 3600 h hr hour, 86400 day, 604800 week; year: 1 year yr;
g: 1 g gram, 1000 kg kilogram, .001 mg milligram, 453.59237 lb lbs pound;
L: 1 L liter litre, .001 mL ml;
dollar: 1 $ dollar usd, .01 cent ¢; euro: 1 €; percent: 1 % percent; deg: 1 ° degree deg;
unit: 1 unit; count: 1e3 thousand, 1e6 million, 1e9 billion, 12 dozen
"""
_UNITS = {
  name: (dimension.strip(), Fraction(scale))
  for dimension, _, row in (line.partition(':') for line in _TABLE.split(';'))
  for scale, *names in (group.split() for group in row.split(','))
  for name in names
}
_UNIT = re.compile(
  r'(?:(?P<power>square|sq|cubic) +)?(?P<name>[A-Za-z]+|[%$€¢°])\.?'
  r'(?: *\^ *\{?(?P<after>[23])\}?)?(?P<per> *(?:/|\bper\b))? *'
)


def unit(text: str) -> tuple[Fraction, tuple[Fraction, tuple]] | None:
  """(factor of counting words, (scale, dimensions)) of '$', 'cm^2', 'million miles per hour'."""
  count, scale, powers, at, sign = Fraction(1), Fraction(1), {}, 0, 1
  while at < len(text):
    m = _UNIT.match(text, at)
    name = m and (m['name'] if m['name'] in _UNITS else m['name'].casefold().removesuffix('s'))
    if not m or name not in _UNITS or (m['after'] and not name.isalpha()):
      return None
    (dimension, factor), at = _UNITS[name], m.end()
    power = sign * int(m['after'] or {'cubic': 3, None: 1}.get(m['power'], 2))
    if dimension == 'count':
      count *= factor
    elif dimension != 'unit':
      scale, powers[dimension] = scale * factor**power, powers.get(dimension, 0) + power
    sign = -1 if m['per'] else sign
  return count, (scale, tuple(sorted(powers.items())))
