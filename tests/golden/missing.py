"""Systems of golden files that have no adapter yet.  A test keeps this list from naming one that has: it can only shrink."""

MISSING = {
    'mqar'}
