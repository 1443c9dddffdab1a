"""The README says what the committed results say, and its commands exist."""

import re

import pytest
from conftest import ROOT

from benchmarks import tables

README = tables.README.read_text()


def test_tables_are_those_of_the_committed_results():
    assert tables.replace_results(README) == README, "run python -m benchmarks.tables"


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:configs|docs|benchmarks)/\S+?\.\w+", README)))
)
def test_files_it_names_exist(path):
    assert (ROOT / path).exists()
