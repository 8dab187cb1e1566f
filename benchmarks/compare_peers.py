#!/usr/bin/env python3
"""Runs skald's and other engines' bench programs in turn on one model file and prints medians and ratios.

  compare_peers.py --skald build/bin/skald -m model.gguf --peer llama.cpp=/path/llama-bench \
                   --peer "ik=/path/llama-bench -rtr 1 -fa 1" [-p 512] [-n 128] [-d 0] [-t 4] [--rounds 5] [--csv out.csv]

A peer is NAME=COMMAND; the command takes llama-bench's flags -m -p -n -d -t -r -o json. Each round runs every engine once,
so that a neighbour on the machine disturbs all of them alike. The machine's bandwidth and peaks are measured by
`skald bench` in every round."""
import argparse
import json
import shlex
import statistics
import subprocess
import sys


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    start = done.stdout.find("[")
    return json.loads(done.stdout[start:])


def test_name(row):
    kind = f"pp{row['n_prompt']}" if row["n_gen"] == 0 else f"tg{row['n_gen']}"
    return kind + (f" @ d{row['n_depth']}" if row.get("n_depth") else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skald", required=True, help="the skald program")
    parser.add_argument("--skald-flags", default="", help="further flags for `skald bench`")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("-p", default="512")
    parser.add_argument("-n", default="128")
    parser.add_argument("-d", default="0")
    parser.add_argument("-t", default="4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", help="write every sample: engine,test,round,tokens_per_second")
    args = parser.parse_args()

    common = ["-m", args.model, "-p", args.p, "-n", args.n, "-d", args.d, "-t", args.t, "-r", "1", "-o", "json"]
    engines = {"skald": [args.skald, "-q", "bench", *shlex.split(args.skald_flags)]}
    for peer in args.peer:
        name, _, command = peer.partition("=")
        engines[name] = shlex.split(command)

    samples = {}
    limits = {}
    machine = {"bandwidth_bytes_per_second": [], "int8_operations_per_second": [], "f32_operations_per_second": []}
    for number in range(args.rounds):
        for engine, command in engines.items():
            print(f"round {number + 1}/{args.rounds}: {engine}", file=sys.stderr)
            for row in run(command + common):
                samples.setdefault(test_name(row), {}).setdefault(engine, []).append(row["avg_ts"])
                if engine == "skald":
                    for key, values in machine.items():
                        if key in row:
                            values.append(row[key])
                    limits.setdefault(test_name(row), []).append((row.get("percent_bandwidth"), row.get("percent_peak")))

    print(f"| test | {' | '.join(engines)} | {' | '.join('skald / ' + e for e in engines if e != 'skald')} | % bandwidth | % peak |")
    print("|---|" + "---:|" * (2 * len(engines) + 1))
    for test, by_engine in samples.items():
        medians = {e: statistics.median(v) for e, v in by_engine.items()}
        cells = [f"{medians[e]:.2f}" for e in engines]
        cells += [f"{medians['skald'] / medians[e]:.2f}" for e in engines if e != "skald"]
        for i in (0, 1):
            values = [pair[i] for pair in limits[test] if pair[i] is not None]
            cells.append(f"{statistics.median(values):.1f}" if values else "-")
        print(f"| {test} | {' | '.join(cells)} |")
    if machine["bandwidth_bytes_per_second"]:
        print("\nmachine (median of the run): {:.1f} GB/s read, {:.2f} int8 TOP/s, {:.0f} f32 GFLOP/s; {} rounds, {} threads".format(
            statistics.median(machine["bandwidth_bytes_per_second"]) / 1e9,
            statistics.median(machine["int8_operations_per_second"]) / 1e12,
            statistics.median(machine["f32_operations_per_second"]) / 1e9, args.rounds, args.t))
    if args.csv:
        with open(args.csv, "w", encoding="utf-8") as out:
            out.write("engine,test,round,tokens_per_second\n")
            for test, by_engine in samples.items():
                for engine, values in by_engine.items():
                    for number, value in enumerate(values):
                        out.write(f"{engine},{test},{number + 1},{value}\n")


if __name__ == "__main__":
    main()
