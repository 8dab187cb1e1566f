#!/usr/bin/env python3
"""Runs skald's and other engines' bench programs in turn on one model file; prints medians, ratios and a plot.

  compare_peers.py --skald build/bin/skald -m model.gguf \\
      --peer llama.cpp/fa0="/path/llama-bench -fa 0" --peer llama.cpp/fa1="/path/llama-bench -fa 1" \\
      --peer ik="/path/llama-bench -rtr 1 -fa 1" --batched llama.cpp=/path/llama-batched-bench \\
      --test pp512 --test tg128 --test tg64@8192 --test batch16 --test forward8@1024 --rounds 5 --csv out.csv --svg out.svg

A peer is ENGINE[/VARIANT]=COMMAND. COMMAND takes llama-bench's flags; of an engine's variants the better median of each
test counts. --batched gives llama-batched-bench of an engine. Tests:
  ppN[@D]       prompt of N tokens, after D tokens of context      tokens per second
  tgN[@D]       N generated tokens, after D tokens of context      tokens per second
  batchS[@D]    S sequences generate 32 tokens each, after D (128) tokens each; tokens per second of all together
  forwardN@D    one forward pass of N tokens after D tokens: skald alone, as time over that of one token
Each round runs every engine once, so that a neighbour on the machine disturbs all of them alike; ratios are medians of the
rounds' ratios, with their range. The machine's bandwidth and peaks are measured by `skald bench` in every round.

  compare_peers.py --from Q4_0=a.csv --from Q8_0=b.csv --svg out.svg

draws (and prints) what earlier runs wrote with --csv."""
import argparse
import csv
import json
import re
import shlex
import statistics
import subprocess
import sys


def run(command, quiet_failure=False):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        if quiet_failure:
            return None
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def rows_of(text):
    return json.loads(text[text.find("["):])


class Test:
    def __init__(self, text):
        match = re.fullmatch(r"(pp|tg|batch|forward)(\d+)(?:@(\d+))?", text)
        if not match:
            sys.exit(f"--test {text}: expected ppN, tgN, batchS or forwardN, with @DEPTH where wanted")
        self.kind, self.count, self.name = match[1], int(match[2]), text
        self.depth = int(match[3]) if match[3] else (128 if self.kind == "batch" else 0)


class Skald:
    """`skald bench`, which also says what the machine can do."""

    def __init__(self, command, args):
        self.command = [*shlex.split(command), "-q", "bench", *shlex.split(args.skald_flags)]
        self.args = args

    def bench(self, test, prompt, generated, sequences=1):
        text = run([*self.command, "-m", self.args.model, "-p", str(prompt), "-n", str(generated), "-d", str(test.depth),
                    "--sequences", str(sequences), "-t", self.args.t, "-r", "1", "-o", "json"])
        return rows_of(text)[0]

    def sample(self, test):
        if test.kind == "pp":
            row = self.bench(test, test.count, 0)
        elif test.kind == "tg":
            row = self.bench(test, 0, test.count)
        elif test.kind == "batch":
            row = self.bench(test, 0, 32, test.count)
        else:
            # One pass is over in milliseconds: many of them, both kinds in turn, and the median of the pairs' ratios.
            text = run([*self.command, "-m", self.args.model, "-p", f"1,{test.count}", "-n", "0", "-d", str(test.depth),
                        "-t", self.args.t, "-r", "50", "--in-turn", "-o", "json"])
            one, row = rows_of(text)
            row["avg_ts"] = statistics.median(n / o for n, o in zip(row["samples_ns"], one["samples_ns"]))
        return row["avg_ts"], row


class Peer:
    """An engine with llama-bench's flags; those without -d have -gp for generation at depth."""

    def __init__(self, command, args):
        self.command = shlex.split(command)
        self.args = args
        text = subprocess.run([*self.command[:1], "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.has_depth = "-d, --n-depth" in text.stdout or "--n-depth" in text.stdout

    def sample(self, test):
        common = ["-m", self.args.model, "-t", self.args.t, "-r", "1", "-o", "json"]
        if test.kind == "pp" and (test.depth == 0 or self.has_depth):
            what = ["-p", str(test.count), "-n", "0"]
        elif test.kind == "tg" and (test.depth == 0 or self.has_depth):
            what = ["-p", "0", "-n", str(test.count)]
        elif test.kind == "tg":
            rows = rows_of(run([*self.command, *common, "-p", "0", "-n", "0", "-gp", f"{test.depth},{test.count}"]))
            return rows[-1]["avg_ts"], None
        else:
            return None, None
        if test.depth:
            what += ["-d", str(test.depth)]
        return rows_of(run([*self.command, *common, *what]))[0]["avg_ts"], None


class BatchedPeer:
    """llama-batched-bench: sequences that generate together."""

    def __init__(self, command, args):
        self.command = shlex.split(command)
        self.args = args

    def sample(self, test):
        if test.kind != "batch":
            return None, None
        context = str(test.count * (test.depth + 32) + 64)
        text = run([*self.command, "-m", self.args.model, "-t", self.args.t, "-npp", str(test.depth), "-ntg", "32", "-npl",
                    str(test.count), "-c", context, "--output-format", "jsonl"])
        line = [x for x in text.splitlines() if x.startswith("{")][-1]
        return json.loads(line)["speed_tg"], None


def svg_plot(path, title, ratios, machine):
    """Bars of skald's ratio to each engine with its range, one group per test."""
    bars = [(t, e, r) for t in ratios for e, r in ratios[t].items()]
    if not bars:
        return
    others = list(dict.fromkeys(e for _, e, _ in bars))
    top = max(2.0, max(r[2] for _, _, r in bars) * 1.1)
    colours = ["#3465a4", "#cc7a00", "#4e9a06", "#75507b"]
    height, left, scale = 26 * len(bars) + 90, 230, 460 / top
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" font-size="13">',
           f'<text x="10" y="22" font-size="15">{title}: speed as a multiple of each engine (longer is faster)</text>']
    for i, (test, engine, (ratio, low, high)) in enumerate(bars):
        y = 44 + 26 * i
        out.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{test} / {engine}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{ratio * scale:.1f}" height="19" '
                   f'fill="{colours[others.index(engine) % len(colours)]}"/>')
        out.append(f'<line x1="{left + low * scale:.1f}" y1="{y + 9.5}" x2="{left + min(high, top) * scale:.1f}" y2="{y + 9.5}" stroke="#000"/>')
        out.append(f'<text x="{left + min(max(ratio, high), top) * scale + 6:.1f}" y="{y + 14}">{ratio:.2f}×</text>')
    bottom = 44 + 26 * len(bars)
    out.append(f'<line x1="{left + scale:.1f}" y1="36" x2="{left + scale:.1f}" y2="{bottom}" stroke="#000" stroke-dasharray="4"/>')
    out.append(f'<text x="10" y="{bottom + 24}" fill="#555">{machine}</text></svg>')
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def compare(samples):
    """Of each test: medians of the engines, each with its best variant; and (median, least, largest) of skald's ratios."""
    table, ratios = {}, {}
    for test, by_label in samples.items():
        table[test], ratios[test], best = {}, {}, {}
        for label, values in by_label.items():
            engine, value = label.split("/")[0], median(values)
            if value is not None and value > table[test].get(engine, 0.0):
                table[test][engine] = value
                best[engine] = values
        for engine, values in best.items():
            if engine == "skald" or "skald" not in best:
                continue
            each = [s / v for s, v in zip(best["skald"], values) if s is not None and v is not None]
            ratios[test][engine] = (statistics.median(each), min(each), max(each))
    return table, ratios


def ratio_cell(ratios, engine):
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratios[engine]) if engine in ratios else "-"


def report(args, engines, samples, limits, machine):
    table, ratios = compare(samples)
    others = [e for e in engines if e != "skald"]
    print(f"| test | {' | '.join(engines)} | {' | '.join('skald / ' + e for e in others)} | % bandwidth | % peak |")
    print("|---|" + "---:|" * (len(engines) + len(others) + 2))
    for name, row in table.items():
        cells = [f"{row[e]:.2f}" if e in row else "-" for e in engines]
        cells += [ratio_cell(ratios[name], e) for e in others]
        cells += ["-" if v is None else f"{v:.1f}" for v in (median(column) for column in zip(*limits[name]))]
        print(f"| {name} | {' | '.join(cells)} |")
    text = "machine: " + ", ".join(f"{median(machine[k]) / s:.{p}f} {u}" for k, s, p, u in (
        ("bandwidth_bytes_per_second", 1e9, 1, "GB/s read"), ("int8_operations_per_second", 1e12, 2, "int8 TOP/s"),
        ("f32_operations_per_second", 1e9, 0, "f32 GFLOP/s")) if machine[k])
    print(f"\n{text}; {args.rounds} rounds, {args.t} threads; medians")
    if args.svg:
        svg_plot(args.svg, args.title or args.model.split("/")[-1], ratios, text)


def draw_again(args):
    samples = {}
    for given in args.files:
        name, _, path = given.rpartition("=")
        with open(path, encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rounds = samples.setdefault((name + " " + row["test"]).strip(), {}).setdefault(row["engine"], {})
                rounds[int(row["round"])] = float(row["value"])
    for by_label in samples.values():
        most = max(max(rounds) for rounds in by_label.values())
        for label, rounds in by_label.items():
            by_label[label] = [rounds.get(i) for i in range(1, most + 1)]
    table, ratios = compare(samples)
    others = list(dict.fromkeys(e for row in table.values() for e in row if e != "skald"))
    print(f"| test | skald | {' | '.join(others)} | {' | '.join('skald / ' + e for e in others)} |")
    print("|---|" + "---:|" * (2 * len(others) + 1))
    for name, row in table.items():
        cells = [f"{row[e]:.2f}" if e in row else "-" for e in ["skald", *others]]
        cells += [ratio_cell(ratios[name], e) for e in others]
        print(f"| {name} | {' | '.join(cells)} |")
    if args.svg:
        svg_plot(args.svg, args.title, ratios, args.note)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skald", help="the skald program")
    parser.add_argument("--skald-flags", default="", help="further flags for `skald bench`")
    parser.add_argument("-m", "--model")
    parser.add_argument("--peer", action="append", default=[], metavar="ENGINE[/VARIANT]=COMMAND")
    parser.add_argument("--batched", action="append", default=[], metavar="ENGINE=COMMAND")
    parser.add_argument("--test", action="append", default=[], metavar="TEST", help="default: pp512 and tg128")
    parser.add_argument("-t", default="4", help="threads of every engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wrap", default="", help="a command that every run is an argument of, such as one that pins it")
    parser.add_argument("--csv", help="write every sample: engine,test,round,value")
    parser.add_argument("--svg", help="draw the ratios")
    parser.add_argument("--title", default="")
    parser.add_argument("--from", dest="files", action="append", default=[], metavar="NAME=CSV",
                        help="run nothing: compare what --csv wrote; NAME is put before the tests' names")
    parser.add_argument("--note", default="", help="what the plot says about the machine, with --from")
    args = parser.parse_args()
    if args.files:
        draw_again(args)
        return
    if not args.skald or not args.model:
        parser.error("--skald and -m are needed (or --from)")

    tests = [Test(t) for t in (args.test or ["pp512", "tg128"])]
    programs = {"skald": Skald(args.wrap + " " + args.skald, args)}
    for kind, given in ((Peer, args.peer), (BatchedPeer, args.batched)):
        for entry in given:
            label, _, command = entry.partition("=")
            programs[label if kind is Peer else label + "/batched"] = kind(args.wrap + " " + command, args)
    engines = list(dict.fromkeys(label.split("/")[0] for label in programs))

    samples, limits = {}, {}
    machine = {"bandwidth_bytes_per_second": [], "int8_operations_per_second": [], "f32_operations_per_second": []}
    for number in range(args.rounds):
        for test in tests:
            for label, program in programs.items():
                print(f"round {number + 1}/{args.rounds} {test.name}: {label}", file=sys.stderr)
                value, row = program.sample(test)
                samples.setdefault(test.name, {}).setdefault(label, []).append(value)
                if row is not None:
                    limits.setdefault(test.name, []).append((row.get("percent_bandwidth"), row.get("percent_peak")))
                    for key, values in machine.items():
                        if row.get(key):
                            values.append(row[key])
    report(args, engines, samples, limits, machine)
    if args.csv:
        with open(args.csv, "w", encoding="utf-8") as out:
            out.write("engine,test,round,value\n")
            for test, by_engine in samples.items():
                for engine, values in by_engine.items():
                    for number, value in enumerate(values):
                        if value is not None:
                            out.write(f"{engine},{test},{number + 1},{value}\n")


if __name__ == "__main__":
    main()
