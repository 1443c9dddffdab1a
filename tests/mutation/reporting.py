"""The committed report: `report.json` with every fault tried, and `report.md` for people.

A second sample, of faults that nobody has looked at, is kept beside it in `second.json`, with a
section of the same page. What a person found on looking at a survivor stands in these files as its
`verdict`, and is kept when the report is written again.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Row = dict[str, Any]
LEFT = ("survived", "hangs")  # a hang may be a busy machine's


def write_report(
    rows: list[Row], known: list[Row], about: dict[str, Any], sample: str = "report"
) -> None:
    """Write a sample's file and the page from the results of a run, the newest of each fault."""
    path = HERE / f"{sample}.json"
    old_report = json.loads(path.read_text()) if path.exists() else {"faults": []}
    old = old_report["faults"]
    about["remark"] = about.get("remark") or old_report.get("remark", "")
    verdicts = {identity(row): row["verdict"] for row in old if "verdict" in row}
    for row in rows:
        if row["status"] != "killed":
            row["verdict"] = verdicts.get(identity(row), "")
    _write(about | summary(rows) | {"known": known, "faults": rows}, sample)


def read_report(sample: str = "report") -> dict[str, Any]:
    """The committed report, or its second sample."""
    report: dict[str, Any] = json.loads((HERE / f"{sample}.json").read_text())
    return report


def named_tests(row: Row) -> tuple[str, ...]:
    """The tests that a verdict names, with all their parameters; whole modules too."""
    return tuple(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", row.get("verdict", "")))


def tell_again(
    report: dict[str, Any],
    newest: dict[tuple[str, str, str], Row],
    removed: set[tuple[str, str, str]],
    commit: str,
    sample: str = "report",
) -> None:
    """Write the report with what came of trying again.

    Args:
        report: the committed one of the sample.
        newest: results of faults that were tried again.
        removed: faults of code that is no longer there.
        commit: of the sources that they were tried in.
    """
    for row in report["faults"]:
        if (new := newest.get(identity(row))) and row["status"] in LEFT:
            row.setdefault("first", row["status"])
            row |= {key: new[key] for key in ("status", "code", "by", "why", "tests", "seconds")}
            row["again"] = commit
        elif row["status"] in LEFT and identity(row) in removed:
            row["status"] = "removed"
    report["commit_again"] = commit
    report["hangs"] = sum(row["status"] == "hangs" for row in report["faults"])
    _write(report | summary(report["faults"]), sample)


def _write(report: dict[str, Any], sample: str) -> None:
    (HERE / f"{sample}.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = _page(read_report())
    if (HERE / "second.json").exists():
        lines += _second_sample(read_report("second"))
    (HERE / "report.md").write_text("\n".join(lines) + "\n")


def summary(rows: list[Row]) -> dict[str, Any]:
    """How many were tried, killed (a hang counts), survived, and are equivalent by verdict.

    Faults of code that was removed since count as not tried.

    A hang is one on a quiet machine only: there, run what hangs once more.
    """
    rows = [row for row in rows if row["status"] != "removed"]
    survivors = [row for row in rows if row["status"] == "survived"]
    equivalent = sum(row.get("verdict", "").startswith("equivalent") for row in survivors)
    killed = len(rows) - len(survivors)
    return {
        "tried": len(rows),
        "killed": killed,
        "survived": len(survivors),
        "equivalent": equivalent,
        "killed_percent": round(100 * killed / max(1, len(rows)), 1),
        "killed_percent_without_equivalent": round(
            100 * killed / max(1, len(rows) - equivalent), 1
        ),
    }


def commit_of(root: Path) -> str:
    """The last commit that changed a source into which faults are put."""
    command = ["git", "log", "-1", "--format=%h", "--", "dali_rsb", "pipelines"]
    return subprocess.check_output(command, cwd=root, text=True).strip()


def identity(row: Row) -> tuple[str, str, str]:
    return row["name"].partition(":")[0], row["before"], row["after"]


def first_pass(rows: list[Row]) -> tuple[int, int]:
    """How many were killed before anybody looked at a survivor, and how many ran out of time.

    What ran out of time is not among the killed.
    """
    left = [row for row in rows if row.get("again") or row["status"] != "killed"]
    return len(rows) - len(left), sum(row.get("first", row["status"]) == "hangs" for row in left)


def _page(report: dict[str, Any]) -> list[str]:
    lines = [
        "# Faults put in, and which the tests notice",
        "",
        f"`make mutants` with N={report['count']} and SEED={report['seed']}, sources of commit "
        f"{report['commit']}. Faults of `dali_rsb/` without its kernels and of `pipelines/`, at "
        "even steps through all files; each was tried by the tests that run its statement, fast "
        f"ones of its own folder first, up to {report['limit_s']:.0f} s of them. Not used: "
        f"{', '.join(report['left_out'])}.",
        "",
        f"- killed: {report['killed']} of {report['tried']}, **{report['killed_percent']} %**; "
        f"{report['hangs']} of them by the limit of time alone, which a busy machine exceeds too, "
        "so that they may have survived;",
        *_tried_again(report),
        f"- survived: {report['survived']}, of which {report['equivalent']} change nothing that "
        f"can be observed; without those, {report['killed_percent_without_equivalent']} % are "
        "killed.",
        *([] if not report["remark"] else ["", report["remark"]]),
        "",
        "## Faults that were asked for by name",
        "",
        "| fault | killed by |",
        "|---|---|",
        *(f"| {row['before']} | {_by(row)} |" for row in report["known"]),
        "",
        "## Survivors",
        "",
        "| place | fault | what it means |",
        "|---|---|---|",
    ]
    return lines + [_line(row) for row in report["faults"] if row["status"] == "survived"]


def _second_sample(report: dict[str, Any]) -> list[str]:
    rows = report["faults"]
    killed, late = first_pass(rows)
    looked_at = [row for row in rows if row.get("again") or row["status"] != "killed"]
    return [
        "",
        "## Second sample",
        "",
        f"N={report['count']} and SEED={report['seed']}, sources of commit {report['commit']}: "
        f"{len(rows)} faults that nobody had looked at, as {report['coincide']} more stand in the "
        f"first sample. Up to {report['limit_s']:.0f} s of tests for each. Not used: "
        f"{', '.join(report['left_out'])}.",
        "",
        f"- first pass, before a test was written for any of them: {killed} killed, "
        f"**{100 * killed / len(rows):.1f} %**; {late} more ran out of time;",
        f"- today: {report['killed']} of {report['tried']} killed, {report['killed_percent']} %; "
        f"{report['survived']} survive, of which {report['equivalent']} change nothing that can "
        f"be observed; without those, {report['killed_percent_without_equivalent']} % are killed.",
        *([] if not report["remark"] else ["", report["remark"]]),
        "",
        "| place | fault | today | what it means |",
        "|---|---|---|---|",
        *(_line(row, f"{row['status']} | ") for row in looked_at),
    ]


def _line(row: Row, today: str = "") -> str:
    place = f"{row['name'].partition(':')[0]}:{row['line']}"
    change = f"{row['operator']}: `{_cell(row['before'])}` → `{_cell(row['after'])}`"
    verdict = _cell(row["verdict"]) or f"not looked at; {row['tests']} tests tried it"
    return f"| {place} | {change} | {today}{verdict} |"


def _tried_again(report: dict[str, Any]) -> list[str]:
    if "commit_again" not in report:
        return []
    again = [row for row in report["faults"] if row.get("again")]
    killed = sum(row["status"] == "killed" for row in again)
    removed = sum(row["status"] == "removed" for row in report["faults"])
    return [
        f"- of those, {killed} had survived, or run out of time, until somebody looked at them; "
        f"they were put in again at {report['commit_again']} and are killed by tests that were "
        f"written or named then; {removed} more are of code that has changed since, most of it "
        "removed as nobody needed it (not counted);"
    ]


def _by(row: Row) -> str:
    name = row["by"].removeprefix("tests/") or "time limit"
    return "**survived**" if row["status"] == "survived" else f"`{_cell(name)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")
