"""`python -m tests.campaign [--seed N] [--faults 500] [--workers 20] [--kills 10] [--output json] [--directory D]`

First the faults, then the kills of the quickstart's supervisor; 0 leaves either out. Exit code 1 if something is not as
it should be. What the processes wrote is then kept (with --directory always), and the seed that commits the same faults
again is told.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.campaign.campaign import Campaign, Terms
from tests.campaign.quickstart_killed import kill_again_and_again
from tests.campaign.report import Findings, as_json, as_text


def main() -> int:
    arguments = parsed()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1_000_000)
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="mobius-campaign-"))
    findings = Findings(seed=seed, faults=arguments.faults, workers=arguments.workers)
    if arguments.faults:
        say(f"seed {seed}: {arguments.faults} faults on {arguments.workers} workers")
        terms = Terms(seed=seed, faults=arguments.faults, workers=arguments.workers)
        (directory / "faults").mkdir(parents=True)
        findings = asyncio.run(Campaign(terms, directory / "faults", say).run())
    if arguments.kills:
        (directory / "kills").mkdir(parents=True)
        kill(findings, directory / "kills", arguments.kills)
    print(as_json(findings) if arguments.output == "json" else as_text(findings))
    if findings.problems:
        say(f"what was logged is in {directory}")
        return 1
    if arguments.directory is None:
        shutil.rmtree(directory)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign")
    parser.add_argument("--seed", type=int, help="commit the faults of an earlier campaign again")
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--directory", type=Path, help="where everything is kept; default: a temporary one")
    return parser.parse_args()


def kill(findings: Findings, directory: Path, kills: int) -> None:
    try:
        done, problems = kill_again_and_again(directory, kills, say)
    except (AssertionError, TimeoutError) as error:
        findings.problems.append(f"the quickstart: {error}")
    else:
        findings.kills = [one.seconds for one in done]
        findings.problems += [f"the quickstart: {problem}" for problem in problems]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
