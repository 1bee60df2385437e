"""Settings for every test: one device, exact float32 products, a compilation cache shared by the whole run."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
import pytest

pytest_plugins = ['tests.golden.table']

jax.config.update('jax_default_matmul_precision', 'highest')


def pytest_collection_modifyitems(items):
  """What takes minutes goes first, so that in the end no worker is alone with it."""
  items.sort(key=lambda item: item.path.name not in ('test_sharding.py', 'test_hosts.py', 'test_sequence.py'))


@pytest.fixture(scope='session', autouse=True)
def corpus_cache(tmp_path_factory):
  """Tokenised corpora of the tests stay out of the user's cache."""
  if 'SSMLAB_CACHE' not in os.environ:
    os.environ['SSMLAB_CACHE'] = str(tmp_path_factory.getbasetemp().parent / 'ssmlab-cache')


# Folders whose tests ask whether two ways of calling a model agree.  That does not depend on LLVM's optimisation, a third of the time of compilation;
# the authors' numbers, operators, training and experiments are compiled as for users.
PLAIN = ('interop', 'mixers', 'models', 'tasks')


@pytest.fixture(scope='module', autouse=True)
def forget_compiled(request):
  """A worker holds the compiled programs of one module, not of the whole run."""
  jax.config.update('jax_disable_most_optimizations', request.path.parent.name in PLAIN)
  yield
  jax.clear_caches()
