"""Several runs that differ in their seed, and in one key if asked: carried out and compared."""
