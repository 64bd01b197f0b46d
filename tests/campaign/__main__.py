"""`python -m tests.campaign [--seed N] [--faults 500] [--workers 20] [--output json] [--directory D]`: exit code 1 if
something is not as it should be. What the processes wrote is then kept (with --directory always), and the seed that
commits the same faults again is told.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.campaign.campaign import Campaign, Terms
from tests.campaign.report import as_json, as_text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--seed", type=int, help="commit the faults of an earlier campaign again")
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--directory", type=Path, help="where everything is kept; default: a temporary one")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1_000_000)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    say(f"seed {seed}: {arguments.faults} faults on {arguments.workers} workers")
    if arguments.directory is not None:
        arguments.directory.mkdir(parents=True)
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="mobius-campaign-"))
    terms = Terms(seed=seed, faults=arguments.faults, workers=arguments.workers)
    findings = asyncio.run(Campaign(terms, directory, say).run())
    print(as_json(findings) if arguments.output == "json" else as_text(findings))
    if findings.problems:
        say(f"what was logged is in {directory}")
        return 1
    if arguments.directory is None:
        shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
