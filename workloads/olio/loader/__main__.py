"""``python -m workloads.olio.loader --users 100 --ratio 100 --seed 1 | mariadb olio``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import BinaryIO

from workloads.olio.loader import counts, generate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workloads.olio.loader", description="Write the site's data set as SQL.")
    parser.add_argument("--users", type=int, required=True, help="concurrent users")
    parser.add_argument("--ratio", type=int, default=100, help="registered persons per concurrent user (default 100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", default="-", metavar="FILE", help="default: standard output")
    parser.add_argument("--summary", action="store_true", help="print the numbers of rows as JSON and write no SQL")
    options = parser.parse_args()
    if options.users < 1 or options.ratio < 1:
        parser.error("--users and --ratio must be at least 1")
    if options.summary:
        print(json.dumps(asdict(counts(options.users, options.ratio))))
        return 0
    if options.output == "-":
        write(sys.stdout.buffer, options)
        return 0
    with open(options.output, "wb") as file:
        write(file, options)
    return 0


def write(file: BinaryIO, options: argparse.Namespace) -> None:
    file.writelines(generate(options.users, options.ratio, options.seed))


if __name__ == "__main__":
    sys.exit(main())
