"""What the README shows is what is there: the example is the tested file, links and paths exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()


def test_the_example_task_is_the_tested_file():
  source = (ROOT / 'tests/tasks/my_task_example.py').read_text()
  assert f'```python\n{source}```' in README
  assert len(source.splitlines()) <= 20


def test_links_and_paths_exist():
  links = re.findall(r'\]\(([^)#:]+)\)', README)
  folders = 'model|algos|train|kernels|sharding|tests|launch|configs'
  paths = re.findall(rf'`((?:{folders})/[\w/.]+)`', README)
  assert links and paths
  for path in [*links, *paths]:
    assert (ROOT / path).exists() or (ROOT / 'r1jax' / path).exists(), path


def test_nothing_is_left_to_fill_in():
  assert not re.search(r'@[A-Z]+@', README)
