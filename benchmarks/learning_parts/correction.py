"""One correction sticks: it moves its own prompt and paraphrases of it, and nothing else.

`correcting` is the protocol, `learning_data` has the prompts (written before any gate was fitted). All values are
percent of the report half; the fit half, on which the memory's gates were fitted, is beside it (`--quick`: five
corrections of the report half, answers of 32 tokens).

* `correction.moved`: with all corrections in store, the corrected prompt gives the corrected answer, to the
  letter; `.next`: so does the request right after the correction; `.paraphrase`: so does another wording;
  `.situation`: so does a case to which the answer applies (no goal: it is not the same question);
* `.same_form_kept`, `.unrelated_kept`, `.near_miss_kept`: other prompts give the same bytes as before all
  corrections;
* `.undo_exact`: after an undo the old answer, byte for byte; `.newest`: of two corrections of a prompt the newer
  one holds, and after an undo the older one;
* `.other_user_kept`: another end user of the same tenant gets the same bytes as without any correction, also when
  1,000 were stored on the very prompts;
* what goes further: `.long_fact` (a long answer holds its one corrected fact), `.long_exact`,
  `.long_paraphrase_fact`; `.turns`, `.turns_reworded`, `.turns_other_kept` (conversations); `.warm` (temperature
  0.7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from report import Report, Row

from .correcting import Counts, Protocol, lines
from .plan import Run
from .serving import server

__all__ = ["add_rows", "rows"]

Told = Mapping[str, Any]
Record = Mapping[str, Any]


def add_rows(report: Report, run: Run) -> None:
    """All of `correction.*`."""
    rows(report, run.kept("correction", lambda: _measure(run)))


def _measure(run: Run) -> dict[str, Any]:
    with server(["a", "b"], threads=run.threads, same_tenant=True) as serving:
        return Protocol(serving, Counts.quick() if run.quick else Counts()).go()


def rows(report: Report, told: Told) -> None:
    """From what the protocol wrote down."""
    wanted = {row["id"]: row["answer"] for row in lines("corrections")}
    old = {record["id"]: record["text"] for record in told["own_before"]}

    def corrected(record: Record) -> bool:
        return bool(record["text"] == wanted[record["id"]])

    _share(report, "moved", told["moved"], corrected, 98)
    _share(report, "next", told["next"], corrected, 98)
    _share(report, "paraphrase", told["paraphrases"], corrected, 95)
    _share(report, "situation", told["situations"], corrected)
    for name, goal in (("same_form", 98), ("unrelated", 99.5), ("near_miss", 95)):
        before = {record["id"]: record["text"] for record in told["before"][name]}
        _share(
            report, f"{name}_kept", told["after"][name], lambda r, before=before: r["text"] == before[r["id"]], goal
        )
    _share(report, "undo_exact", told["undone"], lambda r: r["text"] == old[r["id"]], 100)
    newer = {row["id"]: row for row in lines("contradictions")}
    _share(
        report,
        "newest",
        told["newest"],
        lambda r: r["text"] == newer[r["id"]]["answer"] and r["back"] == wanted[newer[r["id"]]["correction"]],
        98,
    )
    _other_user(report, told, old)
    _further(report, told, corrected)


def _other_user(report: Report, told: Told, old: Mapping[str, str]) -> None:
    glances = {record["id"]: record["text"] for record in told["before"]["same_form"]}

    def kept(record: Record) -> bool:
        whole = old.get(record["id"])
        return record["text"] == glances[record["id"]] if whole is None else whole.startswith(record["text"])

    _share(report, "other_user_kept", [*told["other_user"], *told["crowd"]], kept, 100)


def _further(report: Report, told: Told, corrected: Callable[[Record], bool]) -> None:
    """Without goals."""
    long = {row["id"]: row for row in lines("long_answers")}
    turns = {row["id"]: row["answer"] for row in lines("multi_turn")}
    _share(report, "long_fact", told["long"], lambda r: long[r["id"]]["fact"] in r["text"])
    _share(report, "long_exact", told["long"], lambda r: r["text"] == long[r["id"]]["answer"])
    others = [{**record, "text": text} for record in told["long"] for text in record["paraphrases"]]
    _share(report, "long_paraphrase_fact", others, lambda r: long[r["id"]]["fact"] in r["text"])
    _share(report, "turns", told["turns"], lambda r: r["text"] == turns[r["id"]])
    _share(report, "turns_reworded", told["turns"], lambda r: r["reworded"] == turns[r["id"]])
    _share(report, "turns_other_kept", told["turns"], lambda r: r["other_kept"])
    _share(report, "warm", told["warm"], corrected)


def _share(
    report: Report, name: str, records: Sequence[Record], right: Callable[[Record], bool], goal: float | None = None
) -> None:
    """Percent of the report half for which ``right`` holds."""
    halves = {half: [right(record) for record in records if record["split"] == half] for half in ("fit", "report")}
    shares = {half: 100 * sum(found) / len(found) if found else None for half, found in halves.items()}
    compared = {"fit half": shares["fit"], "right": sum(halves["report"])}
    report.add(
        Row(
            f"correction.{name}",
            shares["report"],
            "%",
            n=len(halves["report"]),
            goal=goal,
            direction=">=",
            compared=compared,
        )
    )
    wrong = [record for record in records if record["split"] == "report" and not right(record)]
    for record in wrong[:3]:
        report.note(
            f"{name}, wrong: {record['id']}: {record['text'][:120]!r} (episodes: {record['episodes'] or 'none'})"
        )
