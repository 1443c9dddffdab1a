"""Python imports this at its start: a process that a test starts is changed like the test's."""

from mutation.imports import install

install()
