#!/usr/bin/env python3
"""What generation loses beside a program that keeps one core busy.

  busy_neighbour.py --skald build/bin/skald -m model.gguf [-t 4] [--tokens 16] [--pairs 40] [--core 0]

One run of `skald bench`, in which the neighbour works during every other repetition, so that a machine whose memory changes
its speed changes both of a pair. Prints the median over pairs of the speed beside it over the speed without it, and the
quarters. The neighbour is pinned to one core; skald is not. With N cores and threads, (N - 1) / N of the speed is the share
that is left if the neighbour's core is given up altogether."""
import argparse
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import tempfile


def spin(core):
    os.sched_setaffinity(0, {core})
    while True:
        pass


def measure(args, neighbour):
    """Speeds without and with the neighbour, in pairs."""
    last = ""
    command = [args.skald, "-q", "bench", "--no-probe", "-m", args.model, "-p", "0", "-n", str(args.tokens), "-t", str(args.t),
               "-r", str(2 * args.pairs), "-o", "json", "--progress"]
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True) as bench:
            for line in bench.stderr:
                # The program says so before each repetition.
                if ": repetition " not in line:
                    last = line
                    continue
                number = int(line.split(": repetition ")[1].split("/")[0])
                os.kill(neighbour.pid, signal.SIGCONT if number % 2 == 0 else signal.SIGSTOP)
        if bench.returncode != 0:
            raise SystemExit(f"{args.skald} ended with {bench.returncode}: {last.strip()}")
        output.seek(0)
        result = json.load(output)
    speeds = result[0]["samples_ts"]
    return speeds[0::2], speeds[1::2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skald", required=True)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=16, help="of a repetition")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    args = parser.parse_args()
    neighbour = multiprocessing.Process(target=spin, args=(args.core,), daemon=True)
    neighbour.start()
    try:
        alone, beside = measure(args, neighbour)
    finally:
        neighbour.kill()
        neighbour.join()
    ratios = [b / a for a, b in zip(alone, beside)]
    quarters = statistics.quantiles(ratios, n=4)
    print(f"alone {statistics.median(alone):.1f} t/s, beside a busy neighbour {statistics.median(beside):.1f} t/s")
    print(f"of {len(ratios)} pairs: median ratio {statistics.median(ratios):.3f}, quarters {quarters[0]:.3f} to {quarters[2]:.3f}; "
          f"the share of {args.t - 1} of {args.t} threads is {(args.t - 1) / args.t:.3f}")


if __name__ == "__main__":
    main()
