#!/usr/bin/env python3
"""What generation loses beside a program that keeps one core busy; medians over rounds, alone and beside it in turn.

  busy_neighbour.py --skald build/bin/skald -m model.gguf [-t 4] [--tokens 64] [--rounds 5] [--core 0]

The neighbour is pinned to one core; skald is not. With N cores and threads, (N - 1) / N of the speed is the share that is
left if the neighbour's core is given up altogether."""
import argparse
import json
import multiprocessing
import os
import statistics
import subprocess


def spin(core):
    os.sched_setaffinity(0, {core})
    while True:
        pass


def speed(args):
    text = subprocess.run([args.skald, "-q", "bench", "--no-probe", "-m", args.model, "-p", "0", "-n", str(args.tokens), "-t",
                           str(args.t), "-r", "1", "-o", "json"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(text)[0]["avg_ts"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skald", required=True)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-t", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    args = parser.parse_args()
    alone, beside = [], []
    for _ in range(args.rounds):
        alone.append(speed(args))
        neighbour = multiprocessing.Process(target=spin, args=(args.core,), daemon=True)
        neighbour.start()
        beside.append(speed(args))
        neighbour.kill()
        neighbour.join()
        print(f"alone {alone[-1]:.2f} t/s, beside a busy neighbour {beside[-1]:.2f} t/s", flush=True)
    ratio = statistics.median(b / a for a, b in zip(alone, beside))
    print(f"median ratio {ratio:.3f}; the share of {args.t - 1} of {args.t} threads is {(args.t - 1) / args.t:.3f}")


if __name__ == "__main__":
    main()
