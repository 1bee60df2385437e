"""Models at their published sizes: one module per family, one function per architecture."""
