"""From files to batches: sources, tokenizers and the pipeline between them."""

from ssmlab.data.chunks import Chunks
from ssmlab.data.documents import Documents
from ssmlab.data.pipeline import Data
from ssmlab.data.sentences import Sentences, Table, glue
from ssmlab.data.sources import SPLITS, ArrayRecord, EmptySplit, StandardLibrary, Text, Tokens
from ssmlab.data.tokenizers import Bytes, HFTokenizer, RWKVWorld

__all__ = ['SPLITS', 'ArrayRecord', 'Bytes', 'Chunks', 'Data', 'Documents', 'EmptySplit', 'HFTokenizer', 'RWKVWorld', 'Sentences', 'StandardLibrary', 'Table', 'Text', 'Tokens', 'glue']
