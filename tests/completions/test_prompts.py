"""Templates of langchain-core's three formats over rows: what they give, what they refuse, what they can't
reach."""

from __future__ import annotations

import datetime
import decimal
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo_server import Complete, EchoServer, read
from langchain_core.prompts import PromptTemplate

from airflow_provider_gradient.datasets import DatasetError, row_template

ROW: dict[str, Any] = {
    "q": "Is <b> & 'c' \"d\"?",
    "user": {"name": "Ann", "items": [3, 0], "phone": None, "home": {"city": "Köln"}},
    "tags": ["a", "b"],
    "empty": [],
    "zero": 0,
    "yes": True,
    "nothing": None,
}


def render(format: Any, text: str, row: dict[str, Any] = ROW) -> str:
    return row_template(text, format=format).render(row, "row 7")


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("mustache", "{{q}} {{{q}}} {{& q}}", " ".join([ROW["q"]] * 3)),
        ("mustache", "{{user.name}} of {{user.home.city}} {{tags.1}}", "Ann of Köln b"),
        ("mustache", "{{#user}}{{name}}: {{#items}}<{{.}}>{{/items}}{{/user}}", "Ann: <3><0>"),
        ("mustache", "{{zero}} {{yes}}", "0 true"),
        ("mustache", "{{#nothing}}a{{/nothing}}{{^nothing}}b{{/nothing}} {{zero}}", "b 0"),
        ("mustache", "{{#gone}}{{gone}}{{/gone}}{{^gone}}not there{{/gone}}", "not there"),
        ("mustache", "{{#empty}}a{{/empty}}{{^empty}}empty{{/empty}}", "empty"),
        ("mustache", "{{#tags}}{{.}} {{zero}},{{/tags}}", "a 0,b 0,"),
        ("mustache", "{{=<% %>=}}<% q %> {{q}}", f"{ROW['q']} {{{{q}}}}"),
        ("jinja2", "{{ q }}", ROW["q"]),
        (
            "jinja2",
            "{{ user.name }} of {{ user['home'].city }} {{ tags[1] }} {{ tags[-1] }}",
            "Ann of Köln b b",
        ),
        ("jinja2", "{{ user.items }}", "[3, 0]"),
        ("jinja2", "{% for tag in tags %}{{ loop.index }}{{ tag | upper }}{% endfor %}", "1A2B"),
        (
            "jinja2",
            "{% if nothing %}a{% else %}b{% endif %} {{ gone is none }} {{ q is none }}",
            "b true false",
        ),
        ("jinja2", "{{ nothing | default('-') }} {{ gone.of.it | default('-') }} {{ gone or 'x' }}", "- - x"),
        ("jinja2", "{{ user.phone | default('no phone') }}", "no phone"),
        ("jinja2", "{{ user.home | tojson }}{{ '<' if q | tojson }}", '{"city": "Köln"}<'),
        ("jinja2", "{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m(user.name) }}", "[Ann]"),
        ("jinja2", "{{ user.home | items | list }}", '[["city", "Köln"]]'),
    ],
)
def test_a_row_gives_this_text(format: str, text: str, expected: str) -> None:
    assert render(format, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{{q}}}\n{{#tags}}\n- {{.}}\n{{/tags}}\nend {{{user.name}}}",
        "{{! a comment }}{{#user}}\n  {{{name}}}\n{{/user}}{{^nothing}}\nno\n{{/nothing}}",
    ],
)
def test_mustache_is_laid_out_as_langchain_does_it(text: str) -> None:
    assert render("mustache", text) == PromptTemplate.from_template(text, template_format="mustache").format(
        **ROW
    )


@pytest.mark.parametrize(
    ("format", "text", "named"),
    [
        ("mustache", "{{gone}}", "'gone'"),
        ("mustache", "{{nothing}}", "'nothing'"),
        ("mustache", "{{{user.phone}}}", "'user.phone'"),
        ("mustache", "{{#tags}}{{gone}}{{/tags}}", "'gone'"),
        ("mustache", "{{q.upper}}", "'q.upper'"),
        ("jinja2", "{{ gone }}", "column 'gone'"),
        ("jinja2", "{{ nothing }}", "column 'nothing'"),
        ("jinja2", "{{ nothing.name }}", "column 'nothing'"),
        ("jinja2", "{{ user.phone }}", "'phone' is missing or null beside 'name', 'items', 'phone', 'home'"),
        ("jinja2", "{{ user.none }}", "'none' is missing or null beside"),
        ("jinja2", "{{ gone | upper }}", "column 'gone'"),
        ("jinja2", "{{ q ~ nothing }}", "column 'nothing'"),
        ("jinja2", "{% for one in gone %}{{ one }}{% endfor %}", "column 'gone'"),
        ("jinja2", "{% for one in user.values %}{{ one }}{% endfor %}", "'values' is missing or null"),
        ("jinja2", "{{ user | attr('phone') }}", "'phone' is missing or null"),
        ("jinja2", "{{ user['home'] and gone }}", "column 'gone'"),
        ("jinja2", "{% set x = none %}{{ x }} {{ q }}", "a value that would be written is null"),
    ],
)
def test_a_value_that_is_missing_or_null_is_named_with_the_row_and_never_rendered_as_nothing(
    format: str, text: str, named: str
) -> None:
    with pytest.raises(DatasetError) as raised:
        render(format, text)
    message = str(raised.value)
    assert message.startswith("row 7: ")
    assert named in message
    assert "columns: 'q', 'user', 'tags', 'empty', 'zero', 'yes', 'nothing'" in message


class Secret:
    def __init__(self) -> None:
        self.token = "s3cret"

    def __repr__(self) -> str:
        return "s3cret"

    def __str__(self) -> str:
        return "s3cret"


@pytest.mark.parametrize(
    "text",
    [
        "{{ x.__class__ }}",
        "{{ x['__class__'] }}",
        "{{ x.__init__.__globals__ }}",
        "{{ x | attr('__class__') }}",
        "{{ [x] | map(attribute='__class__') | list }}",
        "{{ [x] | groupby('__class__') }}",
        "{{ [x] | sort(attribute='__class__') }}",
        "{{ [x] | map('attr', '__class__') | list }}",
        "{{ ''.__class__.__mro__ }}{{ x }}",
        "{{ ().__class__.__base__.__subclasses__() }}{{ x }}",
        "{{ {}.__class__ }}{{ x }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ ('{0.__class__}' | string).format_map(x) }}",
        "{{ x.format }}",
        "{{ x.upper() }}",
        "{{ tags.append(1) }}{{ x }}",
        "{{ range.__globals__ }}{{ x }}",
        "{{ range }}{{ x }}",
        "{{ namespace.__init__ }}{{ x }}",
        "{{ namespace(a=1).__class__ }}{{ x }}",
        "{% set n = namespace(a=1) %}{{ n | attr('__init__') }}{{ x }}",
        "{{ lipsum.__globals__ }}{{ x }}",
        "{{ cycler.__init__.__globals__ }}{{ x }}",
        "{{ self.__init__ }}{{ x }}",
        "{{ self._TemplateReference__context }}{{ x }}",
        "{{ self }}{{ x }}",
        "{% for a in tags %}{{ loop.__class__ }}{% endfor %}",
        "{% for a in tags %}{{ loop._iterator }}{% endfor %}",
        "{% macro m() %}{{ x }}{% endmacro %}{{ m.__globals__ }}",
        "{% macro m() %}{{ x }}{% endmacro %}{{ m._environment }}",
        "{{ secret.token }}{{ x }}",
        "{{ secret['token'] }}{{ x }}",
        "{{ secret }}{{ x }}",
    ],
)
def test_there_is_no_way_out_of_the_jinja_sandbox(text: str) -> None:
    with pytest.raises(DatasetError, match=r"^row 7: ") as raised:
        render("jinja2", text, {"x": "text", "tags": ["a", "b"], "secret": Secret()})
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["{{x.__class__}}", "{{x.upper}}", "{{secret.token}}", "{{#x}}{{__class__}}{{/x}}"]
)
def test_there_are_no_attributes_in_mustache(text: str) -> None:
    with pytest.raises(DatasetError, match="is missing or null"):
        render("mustache", text, {"x": "text", "secret": Secret()})


VALUES: dict[str, Any] = {
    "list": ["a", None, True, 0.1],
    "object": {"ä": None, "of": [1.5]},
    "flag": False,
    "number": 0.1,
    "short": np.float32(0.1),
    "shorts": np.array([0.1, 2], dtype=np.float32),
}
IN_JSON = {
    "list": '["a", null, true, 0.1]',
    "object": '{"ä": null, "of": [1.5]}',
    "flag": "false",
    "number": "0.1",
    "short": "0.1",
    "shorts": "[0.1, 2.0]",
}


@pytest.mark.parametrize("column", ["list", "object", "flag", "number"])
@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("f-string", "{COLUMN}"),
        ("mustache", "{{COLUMN}}"),
        ("mustache", "{{#yes}}{{COLUMN}}{{/yes}}"),
        ("jinja2", "{{ COLUMN }}"),
        ("jinja2", "{{ '' ~ COLUMN }}"),
        ("jinja2", "{{ [COLUMN] | join }}"),
        ("jinja2", "{{ COLUMN | string | trim }}"),
        ("jinja2", "{{ '%s' | format(COLUMN) }}"),
        ("jinja2", "{{ '%s' % COLUMN if COLUMN is not mapping else '%s' % (COLUMN,) }}"),
    ],
)
def test_a_value_that_is_no_string_is_json_in_every_format(format: str, text: str, column: str) -> None:
    assert render(format, text.replace("COLUMN", column), {**VALUES, "yes": True}) == IN_JSON[column]


@pytest.mark.parametrize(("format", "text"), [("f-string", "{COLUMN}"), ("mustache", "{{COLUMN}}")])
def test_a_short_float_of_numpys_has_its_own_digits(format: str, text: str) -> None:
    for column in ("short", "shorts"):
        assert render(format, text.replace("COLUMN", column), VALUES) == IN_JSON[column]


def test_a_field_with_a_format_still_formats_the_number() -> None:
    assert render("f-string", "{number:.2f} {flag:>6} {number!r}", VALUES) == "0.10  false 0.1"
    assert render("jinja2", "{{ '%.2f' | format(number) }} {{ '%.2f' % number }}", VALUES) == "0.10 0.10"


@pytest.mark.parametrize(
    "text", ["{{ list | join(', ') }}", "{{ 'x' ~ object['ä'] }}", "{{ '%s' | format(object['ä']) }}"]
)
def test_a_null_in_a_list_never_becomes_the_word_none_in_jinja(text: str) -> None:
    with pytest.raises(DatasetError, match=r"^row 7: .*null"):
        render("jinja2", text, VALUES)


@pytest.mark.parametrize(
    ("format", "text"), [("f-string", "{x}"), ("mustache", "{{x}}"), ("jinja2", "{{ x }}")]
)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (datetime.date(2026, 3, 1), "a date has no form in JSON; make it a string"),
        ([decimal.Decimal("1.5")], "a Decimal has no form in JSON; make it a string"),
        (b"x", "a bytes has no form in JSON"),
        (math.nan, "nan has no form in JSON"),
        ({"deep": [math.inf]}, "it holds NaN, an infinity or itself"),
    ],
)
def test_a_value_that_json_has_no_form_for_is_refused_by_row_and_column(
    format: str, text: str, value: Any, reason: str
) -> None:
    with pytest.raises(DatasetError) as raised:
        render(format, text, {"q": "?", "x": value})
    assert str(raised.value).startswith("row 7: prompt_template can't be filled in: column 'x': ")
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    ("format", "text", "reason"),
    [
        ("mustache", "{{#q}}", "prompt_template is no template: Unexpected EOF"),
        ("mustache", "{{q", "prompt_template is no template"),
        ("mustache", "{{> part}}", "there are no partials"),
        ("mustache", "always the same", "names no column"),
        ("jinja2", "{{ q", "prompt_template is no template: line 1"),
        ("jinja2", "\n{{ q | shout }}", "prompt_template is no template: line 2: No filter named 'shout'"),
        ("jinja2", "{% include q %}", "there are no other templates"),
        ("jinja2", "{% import '/etc/passwd' as x %}{{ q }}", "there are no other templates"),
        ("jinja2", "always the same {{ 1 + 1 }}", "names no column"),
        ("liquid", "{{ q }}", "no format 'liquid'; there are f-string, mustache, jinja2"),
    ],
)
def test_what_is_no_template_is_refused_before_any_row(format: str, text: str, reason: str) -> None:
    with pytest.raises(DatasetError) as raised:
        row_template(text, format=format)  # type: ignore[arg-type]
    assert reason in str(raised.value)


@pytest.mark.parametrize(("format", "text"), [("mustache", "{{user.name}}?"), ("jinja2", "{{ user.name }}?")])
async def test_a_run_sends_what_the_template_gives_and_checks_every_row_before(
    complete: Complete, server: EchoServer, tmp_path: Path, format: str, text: str
) -> None:
    rows = [{"user": {"name": name}} for name in ("Ann", "<Bob>")]
    shared = {"prompt_template": text, "prompt_template_format": format}
    with pytest.raises(DatasetError, match=r"^row 2 of the inline dataset: .*name.* is missing or null"):
        await complete([*rows, {"user": {}}], **shared)
    assert server.requests == []
    manifest = await complete(rows, **shared)
    assert [line["output"] for line in read(tmp_path / "out.jsonl")] == ["echo Ann?", "echo <Bob>?"]
    assert (manifest.prompt_template, manifest.prompt_template_format) == (text, format)


async def test_the_same_text_in_another_format_is_another_run(complete: Complete, server: EchoServer) -> None:
    rows = [{"q": "1"}]
    for name in ("mustache", "jinja2", "jinja2"):
        await complete(rows, prompt_template="a {{q}}", prompt_template_format=name)
    assert server.queries == {"a 1": 2}
