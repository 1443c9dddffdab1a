"""Random configurations and command lines: a run, an answer, or one line and exit code 2."""

import json
import tempfile
from pathlib import Path

import pytest
from conftest import SERVER
from hostile_commands import command_tasks, write_template
from hostile_configs import cases
from hostile_runs import FINE, config_task, outcomes, write_images

from dali_rsb.__main__ import COMMANDS
from dali_rsb.config import load_config
from dali_rsb.errors import UserError

TRAINED_AT_MOST = 8  # of the configurations that are tried with every change


def _try(make_tasks, arguments, report):
    """Be the warm process, without threads, that tasks are forked from."""
    with tempfile.TemporaryDirectory(prefix="h") as root:
        tasks, template = make_tasks(Path(root) / "t", *arguments)
        found = [(o.what, repr(o.task)[:2000], o.messages) for o in outcomes(tasks, template)]
    report.write_text(json.dumps(found))


def _counts(tmp_path, make_tasks, *arguments):
    """How many tasks ended how; fails with those that did not end as they should."""
    report = tmp_path / "report.json"
    process = SERVER.Process(target=_try, args=(make_tasks, arguments, report))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = json.loads(report.read_text())
    wrong = [outcome for outcome in found if outcome[0] not in FINE]
    assert not wrong, (len(wrong), wrong[0])
    return {what: sum(outcome[0] == what for outcome in found) for what in FINE}


def _some_configs(template, count, seed, trained_at_most):
    """Random configurations, but of those that are valid only the first ones, which take longer."""
    write_images(template / "images")
    chosen, file = [], template / "c.yaml"
    for case in cases(count, seed):
        file.write_bytes(case.text)
        try:
            load_config(file, case.words)
            trained_at_most -= 1
        except UserError:
            chosen.append(config_task(case))
        else:
            if trained_at_most >= 0:
                chosen.append(config_task(case))
    return chosen, template


def _some_commands(template, each, seed, commands):
    return command_tasks(each, seed, commands), write_template(template)


def test_random_configurations_are_trained_or_refused_in_one_line(tmp_path):
    counts = _counts(tmp_path, _some_configs, 200, 0, TRAINED_AT_MOST)
    assert counts["refused"] > 100
    assert counts["trained"] > TRAINED_AT_MOST / 2


def test_random_words_are_answered_or_refused_in_one_line(tmp_path):
    quick = ["help", "diff", "seen", "export", "pack"]
    counts = _counts(tmp_path, _some_commands, 5, 0, quick)
    assert counts["refused"] >= len(quick)
    assert counts["answered"] >= len(quick)  # the first words of each work


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_five_thousand_random_configurations(tmp_path):
    counts = _counts(tmp_path, _some_configs, 5000, 7, 5000)
    assert counts["trained"] > 1000
    assert counts["refused"] > 1000


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_command_lines_for_each_command(tmp_path):
    counts = _counts(tmp_path, _some_commands, 20, 1, list(COMMANDS))
    assert counts["answered"] >= len(COMMANDS)
