"""Chat templates: rendered as transformers renders them, and kept from doing harm."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlx.errors import ChatTemplateError
from rlx.io.chat_template import ChatTemplate, chat_template_from
from rlx.io.gguf import open_gguf
from rlx.io.safetensors_folder import open_folder
from tests.io.gguf_writer import write_gguf
from tests.io.test_safetensors_folder import folder_with, raw_file

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi <b> ü"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2+2?"},
]


def test_default_model_speaks_chatml(smollm2_path: Path) -> None:
    template = chat_template_from(open_gguf(smollm2_path))
    assert template.render(MESSAGES[:1]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi <b> ü<|im_end|>\n<|im_start|>assistant\n"
    )
    text = template.render([{"role": "system", "content": "Be brief."}, *MESSAGES], add_generation_prompt=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b> ü<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    )


# Each expected text is what transformers 5.24 gives (`_compile_jinja_template(source).render(...)`).
RENDERED = {
    "white space control": (
        "{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}",
        "user\nassistant\nuser\n",
    ),
    "tokens": ("{{ bos_token }}|{{ eos_token }}|{{ other }}", "<s>|</s>|"),
    "tojson": ('{{ {"b": "<ü>", "a": [1, none]} | tojson }}', '{"b": "<ü>", "a": [1, null]}'),
    "tojson indented": ('{{ {"a": 1} | tojson(indent=2) }}', '{\n  "a": 1\n}'),
    "loop variables": (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
        "1/3,2/3,3/3",
    ),
    "loop neighbours": (
        "{% for m in messages %}{{ loop.nextitem.role if not loop.last }};{% endfor %}",
        "assistant;user;;",
    ),
    "break and continue": (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "023",
    ),
    "generation tag": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
        "Hi <b> ü;Hello;2+2?;",
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "3",
    ),
    "macro": ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') }}{{ f(messages | length) }}", "[a][3]"),
    "filters": ("{{ messages | map(attribute='role') | join(', ') | upper | trim }}", "USER, ASSISTANT, USER"),
    "selectattr": ("{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}", "2+2?"),
    "methods": ("{{ messages[0]['content'].split(' ')[0].strip() ~ 'x' * 3 }}", "Hixxx"),
    "format": ("{{ '%s-%03d' % ('a', 7) }} {{ '{:>4}'.format('b') }}", "a-007    b"),
    "unpacking": ("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "role=user;content=Hi <b> ü;"),
    "block set": ("{% set x %}a{{ 1 + 1 }}{% endset %}{{ x }}{{ x | length }}", "a22"),
    "recursive loop": (
        "{% for i in [[1, [2]], [3]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}",
        "123",
    ),
    "else": ("{% for m in [] %}x{% else %}none{% endfor %}", "none"),
    "prompt": ("{% if add_generation_prompt %}A:{% endif %}{% if tools is none %}-{% endif %}", "A:-"),
}


@pytest.mark.parametrize("case", RENDERED)
def test_renders_as_transformers_does(case: str) -> None:
    source, expected = RENDERED[case]
    assert ChatTemplate(source, "<s>", "</s>").render(MESSAGES) == expected


def test_extra_variables_and_tools_reach_the_template() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ tools[0].name }} {{ strftime_now('%Y') | length }}")
    assert template.render(MESSAGES, tools=[{"name": "f"}], enable_thinking=False) == "False f 4"


HOSTILE = {
    "endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set s = 'x' * 99999 %}{% for i in s %}{% for j in s %}{% endfor %}{% endfor %}",
    "huge range": "{% for i in range(10 ** 12) %}{% endfor %}",
    "huge text": "{{ 'x' * 10 ** 9 }}",
    "huge list": "{{ [0] * 10 ** 9 }}",
    "huge power": "{{ 2 ** 99999999 }}",
    "doubling": "{% set n = namespace(s='xxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by plus": "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling in a block": (
        "{% set n = namespace(s='xxxx') %}{% for i in range(60) %}{% set x %}{{ n.s }}{{ n.s }}{% endset %}"
        "{% set n.s = x %}{% endfor %}"
    ),
    "much output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "much plain text": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "wide field": "{{ '%999999999d' % 1 }}",
    "wide format": "{{ '{:>999999999}'.format(1) }}",
    "wide method": "{{ 'x'.center(99999999) }}",
    "wide filter": "{{ 'x' | center(99999999) }}",
    "replace method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "join": "{{ (['a' * 1000000] * 1000) | join(',') }}",
    "filler": "{{ lipsum(n=1000000) }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "changing messages": "{{ messages.append(1) }}",
    "division by zero": "{{ 1 / 0 }}",
    "own error": "{{ raise_exception('roles must alternate') }}",
    "undefined": "{{ nothing.at.all }}",
    "not JSON": "{{ namespace | tojson }}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_end_soon_with_one_error(case: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ChatTemplateError):
        ChatTemplate(HOSTILE[case]).render(MESSAGES)
    assert time.perf_counter() - started < 5  # the budget ends them within about a second; slow machines included


def test_reason_of_the_template_is_passed_on() -> None:
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(MESSAGES)


def test_budget_is_new_for_each_rendering() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}ok")
    assert [template.render(MESSAGES) for _ in range(15)] == ["ok"] * 15


@pytest.mark.parametrize("source", ["{% if %}", "{{", "{% for x %}", "{{ " + "(" * 5000 + " }}", "x" * 1_000_001])
def test_templates_that_do_not_parse(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source)


def test_gguf_template_gets_its_tokens(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        {
            "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
            "tokenizer.ggml.tokens": ["a", "<begin>", "<end>"],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        },
    )
    assert chat_template_from(open_gguf(path)).render(MESSAGES) == "<begin>Hi <b> ü<end>"


def test_gguf_without_template(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="no chat template"):
        chat_template_from(open_gguf(write_gguf(tmp_path / "m.gguf", {})))


FOLDERS: dict[str, dict[str, str]] = {
    "file of its own": {
        "chat_template.jinja": "1{{ bos_token }}",
        "tokenizer_config.json": json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "2"}),
    },
    "in the configuration": {
        "tokenizer_config.json": json.dumps({"bos_token": "<s>", "chat_template": "1{{ bos_token }}"})
    },
    "one of several": {
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": "x", "template": "2"}, {"name": "default", "template": "1{{ bos_token }}"}]}
        ),
        "special_tokens_map.json": json.dumps({"bos_token": "<s>"}),
    },
    "in a JSON file": {
        "chat_template.json": json.dumps({"chat_template": "1{{ bos_token }}"}),
        "tokenizer_config.json": json.dumps({"bos_token": "<s>"}),
    },
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder_template(tmp_path: Path, case: str) -> None:
    folder_with(tmp_path, raw_file({}))
    for name, content in FOLDERS[case].items():
        (tmp_path / name).write_text(content)
    assert chat_template_from(open_folder(tmp_path)).render(MESSAGES) == "1<s>"


def test_folder_without_template(tmp_path: Path) -> None:
    with pytest.raises(ChatTemplateError, match="no chat template"):
        chat_template_from(open_folder(folder_with(tmp_path, raw_file({}))))
