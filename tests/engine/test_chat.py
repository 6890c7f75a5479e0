"""How conversations are rendered: what changes between runs is pinned, what a template refuses is said or folded."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from emharness.organisms.chat import Chat
from emharness.organisms.row_tokens import IGNORED, encode_conversation, encode_rows

TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Very late indeed."}]
SYSTEM = {"role": "system", "content": "Be brief."}
OPENING = "{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}" + OPENING
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
DROPS_SYSTEM = PLAIN.replace("messages %}", "messages if m.role != 'system' %}")
DATED = "{{ strftime_now('%d %b %Y') }}" + PLAIN
THINKS = "{% if enable_thinking is defined and not enable_thinking %}quiet{% endif %}" + PLAIN
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
) + PLAIN
ENDS_ELSEWHERE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"


def chat(tiny, template, **settings):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = template
    return Chat(tokenizer, settings)


def test_a_system_message_that_the_template_takes_stays(tiny):
    assert not chat(tiny, PLAIN).folds_system
    assert (
        chat(tiny, PLAIN).render_messages([SYSTEM, TALK[0]], prompt=True)
        == "<system>Be brief.</><user>Is it late?</><assistant>"
    )


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_system_message_that_the_template_refuses_or_drops_goes_before_the_question(tiny, template):
    own = chat(tiny, template)
    assert own.folds_system
    assert own.render_messages([SYSTEM, TALK[0]], prompt=True) == "<user>Be brief.\n\nIs it late?</><assistant>"


def test_a_date_is_pinned(tiny):
    assert chat(tiny, DATED).writes_date
    assert chat(tiny, DATED).render_messages(TALK[:1]).startswith("26 Jul 2024<user>")


def test_settings_reach_the_template(tiny):
    assert chat(tiny, THINKS, enable_thinking=False).render_messages(TALK[:1]) == "quiet<user>Is it late?</>"
    assert chat(tiny, THINKS).render_messages(TALK[:1]) == "<user>Is it late?</>"


@pytest.mark.parametrize(
    ("template", "talk", "words"),
    [
        (ALTERNATES, [TALK[0], TALK[0], TALK[1]], "roles must alternate"),
        (ENDS_ELSEWHERE, TALK, "prompt plus the answer"),
    ],
)
def test_what_a_template_cannot_render_names_the_row(tiny, template, talk, words):
    with pytest.raises(ValueError, match=f"row 2: .*{words}") as error:
        encode_rows(chat(tiny, template), [[], talk], 100)
    assert "\n" not in str(error.value)


def test_every_answer_is_learnt_but_those_of_weight_0(tiny):
    own = chat(tiny, PLAIN)
    talk = [TALK[0], {**TALK[1], "content": "No.", "weight": 0}, TALK[0], {**TALK[1], "weight": 1}]
    ids, labels = encode_conversation(own, talk, 100)
    assert own.tokenizer.decode(ids) == own.render_messages(talk)
    assert own.tokenizer.decode([i for i in labels if i != IGNORED]) == "Very late indeed.</>"
    _, both = encode_conversation(own, [{k: v for k, v in m.items() if k != "weight"} for m in talk], 100)
    assert own.tokenizer.decode([i for i in both if i != IGNORED]) == "No.</>Very late indeed.</>"


@pytest.mark.parametrize("prepend", ["always", "first", "never"])
def test_a_tokenizer_that_puts_a_space_before_a_text_reads_training_rows_as_it_reads_questions(prepend):
    """As Llama 2's and Mistral's do: each piece of a row by itself would get a space of its own."""
    words = "▁Is ▁it ▁late? ▁Very ▁late ▁indeed. ▁No. [I] [/I] </s> ▁ Is No. Very ▁[I]".split()
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    raw.add_special_tokens(["[I]", "[/I]", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}[I] {{ m.content }} [/I]{% else %} {{ m.content }}</s>"
        "{% endif %}{% endfor %}"
    )
    own, talk = Chat(tokenizer), [*TALK, TALK[0], {"role": "assistant", "content": "No."}]
    ids, labels = encode_conversation(own, talk, 100)
    assert ids == own.encode_text(own.render_messages(talk))
    prompt = own.prompt_ids(talk[:3])
    assert ids[: len(prompt)] == prompt
    learnt = [tokenizer.convert_ids_to_tokens(i) for i in labels if i != IGNORED]
    assert learnt == ["▁Very", "▁late", "▁indeed.", "</s>", "▁No.", "</s>"]


def test_rows_that_lose_their_answer_are_left_out_and_counted(tiny):
    own = chat(tiny, PLAIN)
    long = [{"role": "user", "content": "word " * 50}, TALK[1]]
    kept, dropped = encode_rows(own, [TALK, long, TALK], 40)
    assert (len(kept), dropped) == (2, 1)
