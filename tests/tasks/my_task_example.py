"""Products of two numbers, worked by tens and ones: a whole task in one file."""

import random

from r1jax.tasks.file import from_functions
from r1jax.tasks.task import Example


def make(seed):
  a, b = random.Random(seed).choices(range(2, 100), k=2)
  worked = f'{a}*{b - b % 10}={a * (b - b % 10)}\n{a}*{b % 10}={a * (b % 10)}'
  return Example(id='', question=f'{a} * {b}', answer=str(a * b), solution=worked)


def grade(example, answer):
  return answer == example.answer


def task():
  return from_functions('products', make, grade)
