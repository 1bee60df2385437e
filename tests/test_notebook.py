"""colab/quickstart.ipynb runs from top to bottom, at small settings."""

import os
import pathlib

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]


def test_quickstart_runs(monkeypatch, tmp_path):
  monkeypatch.setenv('SSMLAB_STEPS', '4')
  monkeypatch.setenv('PYTHONPATH', str(ROOT) + os.pathsep + os.environ.get('PYTHONPATH', ''))
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  notebook = nbformat.read(ROOT / 'colab' / 'quickstart.ipynb', as_version=4)
  committed = len((ROOT / 'colab' / 'quickstart.ipynb').read_bytes())
  assert committed < 300_000
  done = NotebookClient(notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}).execute()
  text = ' '.join(output.get('text', '') for cell in done.cells if cell.cell_type == 'code' for output in cell.outputs)
  assert text.count('bits per byte') == 2 and 'def ' in text and 'derivative' in text
