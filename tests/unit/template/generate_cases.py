#!/usr/bin/env python3
"""Writes cases.json: what Jinja2 renders for many small templates and for the templates in families/.

Needs the package jinja2. The environment is the one chat templates are rendered in by Hugging Face's transformers.
Run after changing the lists below: python3 generate_cases.py
"""
import datetime
import json
import pathlib
import warnings

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

warnings.simplefilter("ignore")
HERE = pathlib.Path(__file__).parent
NOW = 1700000000  # 2023-11-14 22:13:20 UTC


class Generation(Extension):
    """{% generation %}…{% endgeneration %} renders its body."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.utcfromtimestamp(NOW).strftime(f)
    return env


EXTRA = {
    "s": "Hello World", "t": "  spaced\t\n", "u": "Grüße, Κόσμε 😀", "n": 7, "f": 2.5, "big": 1e16, "tiny": 1e-5, "no": None,
    "yes": True, "xs": [3, 1, 2], "ws": ["b", "A", "c", "a"], "e": [], "d": {"b": 1, "a": [1, "x", None, True, 1.5], "é": "\"q\"\n"},
    "ps": [{"k": "x", "v": 2, "w": {"z": [5, 6]}}, {"k": "y", "v": 1}, {"k": "x", "v": None}], "html": "<a href=\"x\">'&'</a>",
    "quotes": ["it's", 'say "hi"', "both ' and \"", "tab\t\x01\u200b\u00a0é"], "items_key": {"items": 3, "get": 4},
}


def user(text): return {"role": "user", "content": text}
def assistant(text, **more): return {"role": "assistant", "content": text, **more}
def system(text): return {"role": "system", "content": text}


def load(name):
    """Templates and expressions, one after the other, with lines of %% between; lines of # are comments."""
    blocks = (HERE / name).read_text(encoding="utf-8").split("\n%%\n")
    return [block for block in blocks if block.strip()]


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Weather of a <city> & \"more\"",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "The city's name"},
            "unit": {"type": "string", "enum": ["c", "f"]}, "days": {"type": "integer", "default": 3},
            "where": {"type": "array", "items": {"type": "number"}}}, "required": ["city"]},
        "return": {"type": "string", "description": "Text"}}},
    {"type": "function", "function": {"name": "now", "description": "Zeit – jetzt",
                                      "parameters": {"type": "object", "properties": {}}}}]


def call(arguments):
    return [{"id": "abcDEF123", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}]


def with_tool(arguments):
    return [user("Wetter in Köln?"), assistant("", tool_calls=call(arguments)),
            {"role": "tool", "content": "{\"temp\": 21.5}", "name": "get_weather", "tool_call_id": "abcDEF123"},
            assistant("It is 21.5 °C."), user("Thanks & bye <x>")]


CONVERSATIONS = {
    "plain": {"messages": [user("Hello")]},
    "without generation prompt": {"messages": [user(" Hello\n"), assistant("Hi there\n")], "add_generation_prompt": False},
    "system": {"messages": [system("  Be brief. "), user(" Hello\n")]},
    "multi-turn": {"messages": [system("Be brief."), user("A"), assistant("B"), user("C"), assistant("D"), user("E")]},
    "thinking": {"messages": [user("A"), assistant("<think>\nhm\n</think>\n\nB"), user("C"),
                              assistant("D", reasoning_content="so"), user("E")]},
    "tools": {"messages": [user("Weather?")], "tools": TOOLS},
    "tools with system": {"messages": [system("Be brief."), user("Weather?")], "tools": TOOLS},
    "tool call": {"messages": with_tool({"city": "Köln", "days": 2, "f": 1.5, "n": None, "b": True}), "tools": TOOLS},
    "tool call as text": {"messages": with_tool("{\"city\": \"Köln\"}"), "tools": TOOLS},
    "tool answer last": {"messages": with_tool({"city": "Köln"})[:3], "tools": TOOLS},
    "thinking off": {"messages": [user("Hello")], "extra": {"enable_thinking": False}},
    "wrong order": {"messages": [assistant("x"), assistant("y")]},
    "no messages": {"messages": []},
}


def render(case):
    variables = {"bos_token": "<s>", "eos_token": "</s>", "messages": case.get("messages", []), "documents": None,
                 "tools": case.get("tools"), "add_generation_prompt": case.get("add_generation_prompt", True)}
    variables.update(case.get("extra", {}))
    try:
        case["expected"] = environment().from_string(case["template"]).render(**variables)
    except Exception as error:  # whatever Python raises, rendering has failed
        case["fails"] = f"{type(error).__name__}: {error}"
    return case


def main():
    cases = []
    for text in load("expressions.txt"):
        for line in text.split("\n"):
            if line and not line.startswith("#"):
                cases.append({"name": line, "template": "{{ " + line + " }}", "extra": EXTRA})
    for text in load("snippets.txt"):
        cases.append({"name": text, "template": text, "extra": EXTRA,
                      "messages": [system("S"), user("one"), assistant("two"), user("three")]})
    cases = [render(case) for case in cases]
    for case in cases:
        del case["extra"]
        case.pop("messages", None)
        if case["name"] == case["template"]:
            del case["name"]
    families = []
    for path in sorted((HERE / "families").glob("*.jinja")):
        for name, inputs in CONVERSATIONS.items():
            case = render({"template": path.read_text(encoding="utf-8"), **inputs})
            del case["template"]
            families.append({"family": path.name, "conversation": name,
                             **{key: case[key] for key in ("expected", "fails") if key in case}})
    data = {"now": NOW, "extra": EXTRA, "snippet_messages": [system("S"), user("one"), assistant("two"), user("three")],
            "cases": cases, "conversations": CONVERSATIONS, "families": families}
    text = json.dumps(data, ensure_ascii=False, indent=1)
    (HERE / "cases.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(cases)} cases, {len(families)} of families, {sum('fails' in c for c in cases + families)} of them fail")


if __name__ == "__main__":
    main()
