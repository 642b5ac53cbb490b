"""How long Adam's default race takes on each built-in problem: what `adam-jax problems` tells.

Each is a process of its own, `adam-jax race NAME --entrants adam`, so compilation and Python's
start count. Wall time depends on who else uses the machine; the processors' time, over the cores,
less so, and is a lower bound of the wall time of a quiet machine.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from statistics import median

from speed import surroundings

from adam_jax.race import problem


def measured(name: str) -> tuple[float, float]:
    """Wall and processor seconds of a race."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "adam_jax", "race", name, "--entrants", "adam"]
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="*", default=problem.names())
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    print(surroundings())
    print("| problem | wall, s | processors, s | over the cores, s | the file says |")
    print("|---|---|---|---|---|")
    for name in arguments.problems:
        rounds = [measured(name) for _ in range(arguments.rounds)]
        wall, processors = map(median, zip(*rounds, strict=True))
        share, says = processors / (os.cpu_count() or 1), problem.read(name).seconds
        print(f"| {name} | {wall:.1f} | {processors:.1f} | {share:.1f} | {says} |", flush=True)


if __name__ == "__main__":
    main()
