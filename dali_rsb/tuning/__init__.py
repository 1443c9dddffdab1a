"""Settings of the loader that depend on the machine: defaults, search and store."""

from dali_rsb.system.packages import require_dali

require_dali()
