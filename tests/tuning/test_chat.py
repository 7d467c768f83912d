"""Conversations as samples: whose words are learnt, and what can't be told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_gradient.api import InvalidRequestError
from airflow_provider_gradient.tuning import CHAT_TEMPLATES, ChatTemplate, SampleError, training_set

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who won?"},
    {"role": "assistant", "content": "Dallas."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "Dallas again."},
]


def segments(messages: Any, template: str, **arguments: Any) -> list[tuple[str, bool]]:
    data = training_set([{"talk": messages}], messages_column="talk", chat_template=template, **arguments)
    return [(segment.value, segment.trainable is not False) for segment in data.samples[0].segments]


LEARNT = {
    "chatml": ["Dallas.<|im_end|>\n", "Dallas again.<|im_end|>\n"],
    "llama2": [" Dallas. </s>", " Dallas again. </s>"],
    "llama3": ["Dallas.<|eot_id|>", "Dallas again.<|eot_id|>"],
    "instruction": [" Dallas.", " Dallas again."],
    "question": [" Dallas.", " Dallas again."],
}


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_of_a_named_template_only_the_assistants_words_are_learnt(template: str) -> None:
    found = segments(TALK, template)
    assert [text for text, trainable in found if trainable] == LEARNT[template]
    context = "".join(text for text, trainable in found if not trainable)
    assert all(words in context for words in ("Be brief.", "Who won?", "And then?"))


def test_the_forms_are_those_that_the_models_know() -> None:
    whole = {name: "".join(text for text, _ in segments(TALK, name)) for name in CHAT_TEMPLATES}
    assert whole["chatml"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho won?")
    assert whole["llama2"] == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWho won? [/INST] Dallas. </s>"
        "<s>[INST] And then? [/INST] Dallas again. </s>"
    )
    assert whole["llama3"].endswith(
        "<|start_header_id|>assistant<|end_header_id|>\n\nDallas again.<|eot_id|>"
    )
    assert whole["instruction"] == (
        "Be brief.\n\n### Instruction: Who won? \n\n### Response: Dallas."
        "\n\n### Instruction: And then? \n\n### Response: Dallas again."
    )
    assert whole["question"].endswith("\n\nQuestion: And then?\n\nAnswer: Dallas again.")


def test_a_template_of_ones_own_asks_for_the_answer_and_that_is_context() -> None:
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }};{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert segments(TALK[1:3], template) == [("[user]Who won?;[assistant]", False), ("Dallas.;", True)]
    named = segments(TALK[1:3], template, trainable_roles=["user", "assistant"])
    assert named == [("[user]", False), ("Who won?;", True), ("[assistant]", False), ("Dallas.;", True)]


def test_a_conversation_may_be_json_text_and_may_have_a_weight() -> None:
    row = {"talk": json.dumps(TALK), "w": 2}
    data = training_set([row], messages_column="talk", chat_template="question", multiplier_column="w")
    assert data.samples[0].to_wire()["fineTuningParameters"] == {"multiplier": 2.0}


@pytest.mark.parametrize("left_out", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
@pytest.mark.parametrize("template", CHAT_TEMPLATES)
def test_an_answer_that_is_left_out_of_the_loss_is_context(template: str, left_out: dict[str, Any]) -> None:
    talk = [*TALK[:2], TALK[2] | left_out, TALK[3], TALK[4] | {"weight": 1, "train": True, "name": None}]
    found = segments(talk, template)
    assert [text for text, trainable in found if trainable] == LEARNT[template][1:]
    assert "".join(text for text, _ in found) == "".join(text for text, _ in segments(TALK, template))


def test_only_the_prompts_of_answers_that_are_learnt_count_as_trained_on() -> None:
    talk = [TALK[1], TALK[2] | {"weight": 0}, *TALK[3:]]
    arguments = {"messages_column": "talk", "chat_template": "question", "evaluation_column": "q"}
    kept = training_set([{"talk": talk}], evaluation_dataset=[{"q": "Who won?"}], **arguments)
    assert len(kept.samples) == 1
    with pytest.raises(SampleError, match="evaluation"):
        training_set([{"talk": talk}], evaluation_dataset=[{"q": "Who won? And then?"}], **arguments)


def test_what_a_template_reads_of_a_message_is_no_unknown_key() -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}{{ ' ' ~ m['name'] if 'name' in m }}]"
        "{{ m.content or m.tool_calls[0].function.name }};{% endfor %}"
    )
    calling = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "score"}}]}
    found = segments([TALK[1] | {"name": "Ann"}, calling], template)
    assert found == [("[user Ann]Who won?;", False), ("[assistant]score;", True)]


BAD = {
    "an unknown key": (
        [TALK[1], TALK[2] | {"wieght": 0}],
        "message 1 of column 'talk' has the unknown key 'wieght'",
    ),
    "a name that is not shown": ([TALK[1] | {"name": "Ann"}, TALK[2]], "unknown key 'name'"),
    "calls that are not shown": (
        [TALK[1], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}], "refusal": None}],
        "unknown key 'tool_calls': a message has role, content, weight and train, and what the chat template "
        "reads. This template doesn't read them",
    ),
    "ShareGPT": ([{"from": "human", "value": "hi"}], "rename ShareGPT's 'from' to 'role'"),
    "a weight between": (
        [TALK[1], TALK[2] | {"weight": 0.5}],
        "has the weight 0.5: it is 1 for a message to learn",
    ),
    "a weight that is no number": ([TALK[1], TALK[2] | {"weight": True}], "has the weight True"),
    "a train that is no boolean": (
        [TALK[1], TALK[2] | {"train": "no"}],
        "its train is 'no', not true or false",
    ),
    "a contradiction": (
        [TALK[1], TALK[2] | {"weight": 1, "train": False}],
        "message 1 of column 'talk': its weight and its train contradict each other",
    ),
    "a question to learn": (
        [TALK[1] | {"train": True}, TALK[2]],
        "message 0 of column 'talk' is to be learnt, but its role 'user' is not among trainable_roles",
    ),
    "all left out": ([TALK[1], TALK[2] | {"weight": 0}], "nothing is trainable"),
    "no list": ("hello", "is no list of messages"),
    "nested too deeply": ("[" * 100_000, "is no list of messages"),
    "no messages": ([], "has no message in it"),
    "no object": (["hello"], "message 0 of column 'talk' is no object"),
    "no role": ([{"content": "a"}], "message 0 of column 'talk' has no text in 'role'"),
    "no content": ([{"role": "user", "content": None}], "no text in 'content'"),
    "empty": ([{"role": "user", "content": " "}], "message 0 of column 'talk' is empty"),
    "nothing to learn": (TALK[:2], "nothing is trainable"),
}


@pytest.mark.parametrize(("talk", "words"), BAD.values(), ids=BAD)
def test_a_bad_conversation_is_refused_with_its_row(talk: Any, words: str) -> None:
    with pytest.raises(SampleError) as raised:
        segments(talk, "chatml")
    assert str(raised.value).startswith("row 0 of the inline dataset")
    assert words in str(raised.value)


def test_a_template_that_can_not_be_taken_apart_is_refused() -> None:
    counting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(SampleError, match="with message 1 the chat template changes the text before it"):
        segments(TALK, counting)
    with pytest.raises(SampleError, match="can't be filled in: 'tool' is undefined"):
        segments(TALK, "{{ tool.name }}{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(SampleError, match="no system, please"):
        segments(TALK, "{{ raise_exception('no system, please') }}")


MARKED = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}: {{ m.content }};{% endgeneration %}"
    "{% else %}: {{ m.content }};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>: {% endif %}"
)


def test_a_template_that_marks_the_answers_itself_is_taken_at_its_word() -> None:
    assert segments(TALK[1:], MARKED) == [
        ("<user>: Who won?;<assistant>: ", False),
        ("Dallas.;", True),
        ("<user>: And then?;<assistant>: ", False),
        ("Dallas again.;", True),
    ]
    counting = "{{ messages | length }}" + MARKED  # marks need no template that only appends
    learnt = [text for text, trainable in segments(TALK[1:], counting) if trainable]
    assert learnt == ["Dallas.;", "Dallas again.;"]
    with pytest.raises(InvalidRequestError, match="marks the assistant's words itself"):
        segments(TALK, MARKED, trainable_roles=["user"])
    with pytest.raises(SampleError, match="marks 1 answers and the conversation has 2"):
        segments(TALK, MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last"))


@pytest.mark.parametrize("generation", ["", "{% generation %}"], ids=["appending", "marked"])
def test_what_a_template_forces_before_an_answer_is_not_learnt(generation: str) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.role == 'assistant' %}"
        f"{generation}<think></think>{{{{ m.content }}}};{generation.replace('gen', 'endgen')}"
        "{% else %}{{ m.content }};{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    )
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "think"}]
    assert segments(talk, template) == [("<user>hi;<assistant><think></think>", False), ("think;", True)]


def test_reasoning_in_an_answer_is_learnt_with_it() -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{% set parts = m.content.split('</think>') %}"
        "{% if m.role == 'assistant' %}<think>"
        "{{ parts[0].replace('<think>', '') if parts | length > 1 }}</think>{% endif %}"
        "{{ parts[-1] }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    talk = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>easy</think>4"}]
    assert segments(talk, template)[1] == ("<think>easy</think>4;", True)


@pytest.mark.parametrize("generation", ["", "{% generation %}"], ids=["appending", "marked"])
@pytest.mark.parametrize(
    ("answer", "learnt"),
    [
        ({"content": "4", "reasoning_content": "easy"}, "<think>easy</think>4;"),
        ({"content": "4"}, "4;"),
        ({"content": "", "tool_calls": [{"name": "add"}]}, "<think></think>add;"),
        ({"content": None, "tool_calls": [{"name": "add"}]}, "<think></think>add;"),
    ],
)
def test_what_a_template_makes_of_an_answers_other_keys_is_learnt(
    generation: str, answer: dict[str, Any], learnt: str
) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
        f"{generation}<think>{{{{ m.reasoning_content }}}}</think>"
        "{% for call in m.tool_calls %}{{ call.name }}{% endfor %}{{ m.content or '' }};"
        f"{generation.replace('gen', 'endgen')}{{% else %}}{{{{ m.content }}}};{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    talk = [{"role": "user", "content": "2+2?"}, {"role": "assistant", **answer}]
    assert segments(talk, template)[-1] == (learnt, True)


def test_a_template_that_leaves_an_answer_out_is_refused() -> None:
    for_pictures = (
        "{% for m in messages %}"
        "{% for part in m.content if part.type %}{{ part.text }}{% endfor %};"
        "{% endfor %}"
    )
    with pytest.raises(SampleError, match="leaves out the words of message 2"):
        segments(TALK, for_pictures)


@pytest.mark.parametrize(
    "head",
    [
        "{{ bos_token }}",
        "{% if tools %}T{% endif %}",
        "{{ messages[0].tool_calls }}",
        "{% if messages[0].name is defined %}N{% endif %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 1 %}{% break %}{% endfor %}",
    ],
)
def test_what_tokenizers_give_their_templates_is_there(head: str) -> None:
    body = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    assert "".join(text for text, _ in segments(TALK, head + body)).startswith("[system]Be brief.;[user]")


def test_a_template_is_told_a_fixed_date_and_json_keeps_its_letters() -> None:
    template = (
        "{{ strftime_now('%d %b %Y') }} {{ {'é': '<'} | tojson }} "
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert segments(TALK[1:3], template)[0] == ('26 Jul 2024 {"é": "<"} Who won?', False)
    chat = ChatTemplate(template)
    chat.parts(TALK[1:3], "row 0")
    assert chat.date == "2024-07-26"
    assert ChatTemplate("chatml").date is None


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for a in range(999) %}{% for b in range(999) %}{% endfor %}{% endfor %}",
            "passes through its loops",
        ),
        ("{{ 'x' * 99999999 }}", "a text of more than"),
        ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "a text of more than"),
        ("{{ 9 ** 9999999 }}", "the power 9999999"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
    ],
)
def test_a_template_that_never_ends_or_fills_the_memory_is_that_rows_error(template: str, words: str) -> None:
    with pytest.raises(SampleError, match=f"row 0 .*can't be filled in: .*{words}"):
        segments(TALK, template)


def test_a_template_can_not_reach_out_of_its_sandbox() -> None:
    for escape in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(SampleError, match="can't be filled in"):
            segments(TALK, escape)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"chat_template": "vicuna"}, "there is no 'vicuna'; there are chatml"),
        ({"chat_template": "{% for %}"}, "is no template"),
        ({"chat_template": "chatml", "trainable_roles": "assistant"}, "a list of at least one role"),
        ({"chat_template": None}, "messages_column and chat_template together"),
        ({"chat_template": "chatml", "train_on_prompt": True}, "trainable_roles says what is learnt"),
        ({"chat_template": "chatml", "prompt_template": "{q}", "completion_template": "{a}"}, "not both"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        training_set([{"talk": TALK}], messages_column="talk", **arguments)
