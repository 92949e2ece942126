"""Values of C and C++ calls read as Python's do."""

import os

import pytest

from r1jax.core.errors import UserError
from r1jax.rewards import code
from r1jax.rewards.code import verify
from r1jax.rewards.outcome import Outcome
from r1jax.rewards.sandbox import Bubblewrap, Limits
from r1jax.rewards.show import main_file

CORRECT, WRONG, UNPARSEABLE, _ = Outcome
LIMITS = Limits(wall=30.0)
Cases = code.Tests  # under its own name pytest would collect it


@pytest.fixture
def compilers():
  """The sandbox where there is one, with gcc and g++."""
  box = Bubblewrap()
  try:
    box.check()
  except UserError as e:
    pytest.skip(str(e))
  if not all(map(os.path.exists, ('/usr/bin/gcc', '/usr/bin/g++'))):
    pytest.skip('no gcc or no g++')
  return box


def test_c_by_calls(compilers):
  program = """
    #include <stdbool.h>
    int f(int a, int b) { printf("noise"); return a + b; }
    char *g(void) { return "it's \\\\ \\n\\"x\\""; }
    bool h(int a) { return a > 0; }
    double r(void) { return 1 / 3.0; }
    unsigned long long u(void) { return -1; }
    char *k(void) { return "it's"; }
    int main(void) { return 7; }"""
  calls = (
    ('f(1, 2)', '3'), ('g()', repr('it\'s \\ \n"x"')), ('h(1)', 'True'), ('r()', '0.333333333'),
    ('u()', str(2**64 - 1)), ('k()', repr("it's")), ('(char)65', repr('A')),
  )  # fmt: skip
  assert verify(program, Cases(calls=calls), 'c', LIMITS, compilers) is CORRECT
  assert verify(program, Cases(calls=(('f(1, 2)', '4'),)), 'c', LIMITS, compilers) is WRONG
  assert verify('int x;', Cases(calls=(('f(1)', '4'),)), 'c', LIMITS, compilers) is UNPARSEABLE


def test_cpp_by_calls(compilers):
  program = """
    #include <map>
    #include <set>
    #include <string>
    #include <vector>
    using namespace std;
    #define int long long
    struct Solution {
      vector<vector<int>> grid(int n) { return {{n, 2}, {}}; }
      map<string, pair<int, double>> table() { return {{"a\\n'", {1, 0.1}}}; }
      vector<bool> flags() { return {true, false}; }
    };
    set<char> letters() { return {'b', 'a'}; }
    signed main() { return 7; }"""
  calls = (
    ('Solution().grid(1)', '[[1, 2], []]'), ('Solution().table()', repr({"a\n'": (1, 0.1)})),
    ('Solution().flags()', '[True,False]'), ('letters()', "{'a', 'b'}"),
    ('std::string("x")', "'x'"), ('std::make_tuple(1)', '(1,)'),
  )  # fmt: skip
  assert verify(program, Cases(calls=calls), 'cpp', LIMITS, compilers) is CORRECT
  wrong = Cases(calls=(*calls[:-1], ('std::make_tuple(1)', '(2,)')))
  assert verify(program, wrong, 'cpp', LIMITS, compilers) is WRONG


@pytest.mark.parametrize('extension', ['c', 'cpp'])
def test_without_calls_the_main_file_is_the_answer(extension):
  assert main_file([], extension) == f'#include "answer.{extension}"\n'
