"""`python -m tests.campaign.store [--store sqlite] [--store postgresql] [--seed N] [--kills 200] [--restarts 20]
[--cuts 40] [--output json] [--directory D]`

The faults of a crash campaign against each store. Exit code 1 if something is not as it should be, or the throughput
was not back in time after a fault. What the processes wrote is then kept (with --directory always).
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.campaign.store.campaign import Campaign
from tests.campaign.store.report import as_json, as_text, late
from tests.campaign.store.schedule import Terms


def main() -> int:
    arguments = parsed()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1_000_000)
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="mobius-campaign-"))
    found = []
    for store in arguments.store or ["sqlite", "postgresql"]:
        terms = Terms(
            seed=seed,
            store=store,
            kills=arguments.kills,
            restarts=arguments.restarts if store == "postgresql" else 0,
            cuts=arguments.cuts if store == "postgresql" else 0,
        )
        say(f"{store}, seed {seed}: {terms.kills} kills, {terms.restarts} restarts, {terms.cuts} cuts")
        (directory / store).mkdir(parents=True)
        found.append(asyncio.run(Campaign(terms, directory / store, say).run()))
    print("\n\n".join(map(as_json if arguments.output == "json" else as_text, found)))
    if any(findings.problems or late(findings) for findings in found):
        say(f"what was logged is in {directory}")
        return 1
    if arguments.directory is None:
        shutil.rmtree(directory)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.store")
    parser.add_argument("--store", action="append", choices=("sqlite", "postgresql"), help="default: both")
    parser.add_argument("--seed", type=int, help="commit the faults of an earlier campaign again")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--restarts", type=int, default=20, help="of PostgreSQL, half of them crashes")
    parser.add_argument("--cuts", type=int, default=40, help="of connections to PostgreSQL")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--directory", type=Path, help="where everything is kept; default: a temporary one")
    return parser.parse_args()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
