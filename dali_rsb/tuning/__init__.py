"""Settings of the loader that depend on the machine: defaults, search and store."""
