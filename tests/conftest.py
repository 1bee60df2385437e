"""Settings for every test: one device, exact float32 products, a compilation cache shared by the whole run."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
import pytest

pytest_plugins = ['tests.golden.table']

jax.config.update('jax_default_matmul_precision', 'highest')


@pytest.fixture(scope='session', autouse=True)
def corpus_cache(tmp_path_factory):
  """Tokenised corpora of the tests stay out of the user's cache."""
  if 'SSMLAB_CACHE' not in os.environ:
    os.environ['SSMLAB_CACHE'] = str(tmp_path_factory.getbasetemp().parent / 'ssmlab-cache')


@pytest.fixture(scope='module', autouse=True)
def forget_compiled():
  """A worker holds the compiled programs of one module, not of the whole run."""
  yield
  jax.clear_caches()
