"""`python -m benchmarks [ROW ...]`: do the work against both servers, and print the table."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from benchmarks.bench import Options
from benchmarks.health import health
from benchmarks.machine import header, machine
from benchmarks.report import RowResult, as_json, compare, failures, table
from benchmarks.rows import ALL
from benchmarks.runner import run_against

SUSTAINED_MINUTES = 10.0
#: Of these rows where they aren't asked for by their names, or with --quick.
SHORT_SUSTAINED_MINUTES = 1.0


def arguments() -> argparse.Namespace:
    rows = "\n".join(f"  {row.key:<12}{row.what}" for row in ALL)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="The same work against Ray's own job server and against ray-jobs.",
        epilog=f"rows:\n{rows}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to run; all if none is named")
    parser.add_argument("--only", choices=("ours", "stock"), help="run against one server only")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, fewer jobs")
    parser.add_argument(
        "--minutes", type=float, help="how long the rows `sustained` and `retaining` run"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parsed = parser.parse_args()
    unknown = set(parsed.rows) - {row.key for row in ALL}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return parsed


def main() -> int:
    asked = arguments()
    # As Ctrl-C: the cluster is ended on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows = [row for row in ALL if not asked.rows or row.key in asked.rows]
    is_long = bool({"sustained", "retaining"} & set(asked.rows)) and not asked.quick
    minutes = asked.minutes or (SUSTAINED_MINUTES if is_long else SHORT_SUSTAINED_MINUTES)
    options = Options(quick=asked.quick, minutes=minutes)
    facts = machine()
    print(header(facts), flush=True)
    stock: list[RowResult] = []
    ours: list[RowResult] = []
    if asked.only != "ours":
        stock = run_against(False, rows, options)
        stock += health(stock)
    if asked.only != "stock":
        ours = run_against(True, rows, options)
        ours += health(ours)
    print(f"\n{header(facts)}\n\n{table(compare(stock, ours))}")
    failed = failures(stock, ours)
    print(*failed, sep="\n")
    if asked.json:
        asked.json.write_text(json.dumps(as_json(facts, stock, ours), indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
