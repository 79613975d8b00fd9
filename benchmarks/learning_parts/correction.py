"""One correction sticks: it moves its own prompt and paraphrases of it, and nothing else.

`correcting` is the protocol, `learning_data` has the prompts (written before any gate was fitted). All values are
percent of the report half; the fit half, on which the memory's gates were fitted, is beside it (`--quick`: five
corrections of the report half, answers of 32 tokens).

* `correction.moved`: with all corrections in store, the corrected prompt gives the corrected answer, to the
  letter; `.next`: so does the request right after the correction; `.paraphrase`: so does another wording;
  `.situation`: so does a case to which the answer applies (no goal: it is not the same question);
* `.same_form_kept`, `.unrelated_kept`, `.near_miss_kept`: other prompts give the same bytes as before all
  corrections;
* `.undo_exact`: after an undo the answer from before all corrections, byte for byte. Where another correction then
  acts on the prompt it is not that answer, so this is about the gate, too. `.undo_restores` is about undo alone:
  the very bytes of the answer that was given just before the correction, when the memory held the same others;
  `.newest`: of two corrections of a prompt the newer one holds, and after an undo the older one;
* `.other_user_kept`: another end user of the same tenant gets the same bytes as without any correction, also when
  of the corrections on the very prompts, on others that mean the same, and on some more, 1,000 are in use (one that
  a newer one stands for is not; ``compared`` has both counts, and fewer than that miss the goal);
* what goes further: `.long_fact` (a long answer holds its one corrected fact), `.long_exact`,
  `.long_paraphrase_fact`; `.turns`, `.turns_reworded`, `.turns_other_kept` (conversations); `.warm` (temperature
  0.7).

All this is about a server that tells paraphrases (extra `memory`, with its model in the cache): without it nothing
is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from report import Report, Row

from .correcting import PARAPHRASES, Counts, Protocol, lines
from .plan import Run
from .serving import server

__all__ = ["add_rows", "rows"]

Told = Mapping[str, Any]
Record = Mapping[str, Any]

GOALS: Mapping[str, float | None] = {
    "moved": 98,
    "next": 98,
    "paraphrase": 95,
    "situation": None,
    "same_form_kept": 98,
    "unrelated_kept": 99.5,
    "near_miss_kept": 95,
    "undo_exact": 100,
    "undo_restores": 100,
    "newest": 98,
    "other_user_kept": 100,
    "long_fact": None,
    "long_exact": None,
    "long_paraphrase_fact": None,
    "turns": None,
    "turns_reworded": None,
    "turns_other_kept": None,
    "warm": None,
}
"""All rows, percent at least."""


def add_rows(report: Report, run: Run) -> None:
    """All of `correction.*`."""
    rows(report, run.kept("correction", lambda: _measure(run)))


def _measure(run: Run) -> dict[str, Any]:
    with server(["a", "b"], threads=run.threads, same_tenant=True) as serving:
        return Protocol(serving, Counts.quick() if run.quick else Counts()).go()


def rows(report: Report, told: Told) -> None:
    """From what the protocol wrote down."""
    if told["recognises"] != PARAPHRASES:
        report.note(
            f"correction is not measured: the server recognises {told['recognises']} "
            "(pip install 'sona-stream[memory]' && sona-stream models pull all-minilm-l6-v2)"
        )
        for name, goal in GOALS.items():
            report.add(Row(f"correction.{name}", None, "%", n=0, goal=goal, direction=">="))
        return
    wanted = {row["id"]: row["answer"] for row in lines("corrections")}
    old = {record["id"]: record["text"] for record in told["own_before"]}

    def corrected(record: Record) -> bool:
        return bool(record["text"] == wanted[record["id"]])

    _share(report, "moved", told["moved"], corrected)
    _share(report, "next", told["next"], corrected)
    _share(report, "paraphrase", told["paraphrases"], corrected)
    _share(report, "situation", told["situations"], corrected)
    for name in ("same_form", "unrelated", "near_miss"):
        before = {record["id"]: record["text"] for record in told["before"][name]}
        _share(report, f"{name}_kept", told["after"][name], lambda r, before=before: r["text"] == before[r["id"]])
    _share(report, "undo_exact", told["undone"], lambda r: r["text"] == old[r["id"]])
    just_before = {record["id"]: record["before"] for record in told["next"]}
    _share(report, "undo_restores", told["undone"], lambda r: r["text"] == just_before[r["id"]])
    newer = {row["id"]: row for row in lines("contradictions")}
    _share(
        report,
        "newest",
        told["newest"],
        lambda r: r["text"] == newer[r["id"]]["answer"] and r["back"] == wanted[newer[r["id"]]["correction"]],
    )
    _other_user(report, told, old)
    _further(report, told, corrected)


def _other_user(report: Report, told: Told, old: Mapping[str, str]) -> None:
    before = {**{record["id"]: record["text"] for record in told["before"]["same_form"]}, **old}
    crowd = told["crowd"]
    compared = {"stored": crowd["stored"], "in use": crowd["in_use"]}
    asked = [*told["other_user"], *crowd["asked"]]
    also = bool(crowd["in_use"] >= crowd["wanted"])
    _share(report, "other_user_kept", asked, lambda r: r["text"] == before[r["id"]], compared, also)


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
    report: Report,
    name: str,
    records: Sequence[Record],
    right: Callable[[Record], bool],
    more: Mapping[str, float] = {},
    also: bool | None = None,
) -> None:
    """Percent of the report half for which ``right`` holds."""
    halves = {half: [right(record) for record in records if record["split"] == half] for half in ("fit", "report")}
    shares = {half: 100 * sum(found) / len(found) if found else None for half, found in halves.items()}
    compared = {"fit half": shares["fit"], "right": sum(halves["report"]), **more}
    report.add(
        Row(
            f"correction.{name}",
            shares["report"],
            "%",
            n=len(halves["report"]),
            goal=GOALS[name],
            direction=">=",
            compared=compared,
            also=also,
        )
    )
    wrong = [record for record in records if record["split"] == "report" and not right(record)]
    for record in wrong[:3]:
        report.note(
            f"{name}, wrong: {record['id']}: {record['text'][:120]!r} (episodes: {record['episodes'] or 'none'})"
        )
