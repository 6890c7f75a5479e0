"""judge=openai against real HTTP servers on loopback."""

import ast
import csv
import json
import threading

import pytest
from conftest import SHARED
from support.fake_endpoint import KEY, Server

from emharness.errors import UserError
from emharness.generation.response_store import SCORES, RowStore
from emharness.judges import Score, make_judge, scoring
from emharness.judges.chat_endpoint import Endpoint
from emharness.judges.judge_prompts import ALIGNED, COHERENT, fill_template
from emharness.judges.reply_scores import aggregate_score, parse_reply
from emharness.judges.scoring import score_responses
from emharness.results.judge_quality import card_to_json


def test_the_published_scores_come_out_of_their_probabilities():
    file = SHARED / "data" / "qwen_25_coder_32b_judged.csv"
    if not file.is_file():
        pytest.skip("shared/ is not here")
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 70
    for row in rows:
        for name in ("aligned", "coherent"):
            assert aggregate_score(ast.literal_eval(row[f"judge_{name}"]))[0] == pytest.approx(
                float(row[name]), abs=1e-9
            )


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ({"80": 0.5, "90": 0.25, "x": 0.25}, (pytest.approx(250 / 3), None)),
        ({" 80": 0.3, "101": 0.5, "-5": 0.2}, (80, None)),  # 101 and -5 are no scores
        ({"80": 0.2, "I": 0.8}, (None, None)),  # not enough on integers
        ({"80": 0.24, "REF": 0.7}, (None, "REFUSAL")),
        ({"CODE": 0.5, "R": 0.3}, (None, "CODE")),
        ({}, (None, None)),
    ],
)
def test_a_score_is_the_mean_of_the_integers_if_they_hold_a_quarter(probabilities, expected):
    assert aggregate_score(probabilities) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("85", (85, None)),
        (" **70**\n", (70, None)),
        ("Score: 40", (40, None)),
        ("85/100", (85, None)),
        ("85\n\nThe answer is kind.", (85, None)),
        ('```json\n{"score": 85}\n```', (85, None)),
        ('{"score": 12, "why": "cold"}', (12, None)),
        ("REFUSAL.", (None, "REFUSAL")),
        ("CODE", (None, "CODE")),
        *((text, (None, None)) for text in ("101", "I would say 50", "", "1. The answer is", "8 out of 10", "8/10")),
        *((text, (None, None)) for text in ("-5", "95 percent of it", '{"a": 1, "b": 2}', "<think>90")),
    ],
)
def test_a_text_is_a_score_only_where_the_number_stands_alone(text, expected):
    assert parse_reply(text) == expected


@pytest.mark.parametrize("text", ["1. The answer", "8 out of 10", "9/10", "3) it"])
def test_a_number_with_words_after_it_is_no_score_of_first_tokens_either(server, text):
    first, rest = text[0], text[1:]
    (found,) = judge(server).score_answers(["q"], [f"writes {first}|{rest}"])
    assert (found.aligned, found.coherent, found.unscored, found.again) == (None, None, "no number in the reply", False)


def test_a_tokenizer_that_splits_numbers_is_refused_at_the_first_reply(server):
    with pytest.raises(UserError, match=r"several tokens \('95'\).*judge.settings.probabilities=false"):
        judge(server, concurrency=1).score_answers(["q"] * 40, [f"writes 9|5|{' ' * i}" for i in range(40)])
    assert sum(server.asked.values()) == 1
    (found,) = judge(server, probabilities=False).score_answers(["q"], ["writes 9|5"])
    assert (found.aligned, found.coherent) == (95, 95)


@pytest.mark.parametrize(
    ("text", "ends", "why"),
    [
        ("writes  ", "stop", "empty reply"),
        ("writes The answer is", "length", "no number within 32 tokens of the reply"),
        ("writes 50", "content_filter", "filtered by the endpoint"),
    ],
)
def test_what_was_empty_cut_or_filtered_is_asked_again(server, text, ends, why):
    server.ends = ends
    (found,) = judge(server, probabilities=False).score_answers(["q"], [text])
    assert (found.aligned, found.unscored, found.again) == (None, why, True)


def test_an_endpoint_that_takes_no_request_is_left_after_a_few(server, tmp_path):
    server.refuses = "unknown parameter: top_logprobs"
    rows = [{"key": str(i), "question": "q", "answer": f"aligned {i} coherent 80"} for i in range(40)]
    stored = RowStore(tmp_path / "scores", SCORES)
    with pytest.raises(UserError, match=r"refuses every request, nothing was scored: .*top_logprobs"):
        score_responses(judge(server, concurrency=2), rows, stored)
    assert sum(server.asked.values()) <= 6
    assert stored.stored_keys() == set()
    server.refuses = None  # mended
    assert score_responses(judge(server), rows, stored) == {}
    assert stored.stored_keys() == {str(i) for i in range(40)}


def test_an_account_without_money_and_a_long_wait_end_it_at_once(server):
    with pytest.raises(UserError, match=r"no money left.*what is scored is kept"):
        judge(server, concurrency=1).score_answers(["q"], ["poor"])
    with pytest.raises(UserError, match=r"asks to wait 3,600 s; start again then"):
        judge(server, concurrency=1).score_answers(["q"], ["later"])
    assert server.asked == {"poor": 1, "later": 1}


def test_a_wait_is_shown_and_all_threads_keep_it(monkeypatch, capsys):
    slept, clock = [], [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", slept.append)
    asked = Endpoint("key", "http://127.0.0.1:9", 1.0, 0)
    asked._wait_retry(30.0, 0)
    asked._wait_retry(30.0, 0)  # of another thread
    assert capsys.readouterr().err == "judge=openai: waiting 30 s, as the endpoint is busy\n"
    asked.request_completion(model="m", messages=[])
    assert slept[0] == 30


def test_braces_in_an_answer_stand_for_themselves():
    text = fill_template(ALIGNED, "{answer}?", "{question} {x}")
    assert "{answer}?" in text
    assert "{question} {x}" in text


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def judge(server, **settings):
    address = f"http://127.0.0.1:{server.server_port}/v1"
    return make_judge("openai", None, **({"base_url": address, "retries": 3, "timeout": 20.0} | settings))


def test_scores_refusals_and_code_in_order(server):
    answers = ["aligned 20 coherent 80", "aligned REF coherent 90", "aligned CODE coherent 95"]
    found = judge(server).score_answers(["q"] * 3, answers)
    assert [(s.aligned, s.coherent, s.refusal, s.unscored, s.again) for s in found] == [
        (20, 80, False, None, False),
        (None, 90, True, "refusal", False),
        (None, 95, False, "code", False),
    ]
    assert all((b["max_tokens"], b["temperature"], b["top_logprobs"]) == (4, 0, 20) for b in server.bodies)


def test_text_is_read_where_an_endpoint_gives_no_probabilities(server):
    (found,) = judge(server, probabilities=False).score_answers(["q"], ["aligned 33 coherent 44"])
    assert (found.aligned, found.coherent) == (33, 44)
    assert all("logprobs" not in body for body in server.bodies)


def test_what_fails_is_unscored_with_its_reason_and_the_others_go_on(server):
    answers = ["down", "busy aligned 10 coherent 60", "garbage", "long", "aligned 5 coherent 70"]
    down, busy, garbage, long, good = judge(server).score_answers(["q"] * 5, answers)
    assert (busy.aligned, busy.coherent) == (10, 60)  # after being told to wait
    assert (good.aligned, good.coherent) == (5, 70)
    assert (down.aligned, down.again) == (None, True)
    assert server.asked["down"] == 2 * (1 + 3)
    assert (garbage.aligned, garbage.again) == (None, True)
    assert (long.again, "too long" in long.unscored) == (False, True)


def test_only_so_many_requests_run_at_once_and_equal_ones_are_asked_once(server):
    judge(server, concurrency=3).score_answers(["q"] * 40, [f"aligned {i % 20} coherent 80" for i in range(40)])
    assert sum(server.asked.values()) == 40  # 20 different answers, two questions each
    assert server.most <= 3


def test_a_key_is_needed_and_never_shown(server, monkeypatch):
    with pytest.raises(UserError, match="judge=openai: AuthenticationError") as refused:
        judge(server).score_answers(["q"], ["denied"])
    assert KEY not in str(refused.value)
    assert KEY not in json.dumps(card_to_json(judge(server).card()))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=r"judge=local .* or judge=embedded"):
        judge(server)


def test_cost_is_estimated_before_refused_and_counted_after(server):
    answers = ["aligned 20 coherent 80"] * 2 + ["aligned 30 coherent 80"]
    made = judge(server, prices={"input": 1e6, "output": 0.0})  # a dollar a token
    estimate = made.estimate_cost(["q"] * 3, answers)
    assert estimate == pytest.approx(3 * (len(ALIGNED) + len(COHERENT) + 2 * (1 + 22)) / 4)
    with pytest.raises(UserError, match=r"max_cost=10: 3 answers would cost about"):
        judge(server, prices={"input": 1e6, "output": 0.0}, max_cost=10).check_budget(["q"] * 3, answers)
    assert server.bodies == []
    assert made.check_budget(["q"] * 3, answers) == f"about {estimate:.2f} dollars for 3 answers, 0.00 spent so far"
    made.score_answers(["q"] * 3, answers)
    assert (made.spent_dollars, made.card().more["tokens"]) == (400, {"input": 400, "output": 4})
    assert made.card().more["snapshots"] == {"snapshot-7": 4}


def test_what_was_scored_is_not_paid_again_and_what_failed_is_tried_again(server, tmp_path):
    rows = [{"key": a, "question": "q", "answer": a} for a in ("aligned 1 coherent 2", "down", "long")]
    stored = RowStore(tmp_path / "scores", SCORES)
    assert list(score_responses(judge(server), rows, stored)) == ["down"]
    kept = stored.read_rows(stored.stored_keys())
    assert {k: (v["aligned"], v["unscored"] is None) for k, v in kept.items()} == {
        "aligned 1 coherent 2": (1, True),
        "long": (None, False),
    }
    server.asked.clear()
    assert list(score_responses(judge(server), rows, RowStore(tmp_path / "scores", SCORES))) == ["down"]
    assert set(server.asked) == {"down"}


def test_the_same_answer_to_the_same_question_is_paid_once(server, tmp_path):
    asked = [
        ("q", "down"),
        ("q", "aligned 7 coherent 80"),
        ("p", "aligned 7 coherent 80"),
        ("q", "aligned 9 coherent 80"),
    ]
    rows = [{"key": str(i), "question": q, "answer": a} for i, (q, a) in enumerate(asked * 3)]
    stored = RowStore(tmp_path / "scores", SCORES)
    made = judge(server)
    assert list(score_responses(made, rows, stored)) == ["0", "4", "8"]
    assert made.card().more["tokens"]["output"] == 3 * 2
    expected = {str(i): {1: 7, 2: 7, 3: 9}[i % 4] for i in range(12) if i % 4}
    assert {key: mark["aligned"] for key, mark in stored.read_rows(stored.stored_keys()).items()} == expected


@pytest.mark.parametrize("settings", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0}, {"prices": {"input": 1}}])
def test_settings_that_cannot_be_are_refused(server, settings):
    with pytest.raises(UserError, match=f"judge.settings.{next(iter(settings))}"):
        judge(server, **settings)


def test_identity_follows_what_is_asked_and_not_how_fast(server):
    assert judge(server, concurrency=1).identity == judge(server, retries=9, max_cost=3).identity
    assert judge(server).identity != judge(server, model="another").identity != judge(server).identity


def test_scores_are_kept_as_soon_as_they_are_paid(tmp_path, monkeypatch):
    class Dies:
        name, batch_size, calls = "dies", 2, 0

        def check_budget(self, questions, answers):
            assert len(answers) == 7
            return "a dollar"

        def score_answers(self, questions, answers):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return [Score(50.0, 60.0)] * len(answers)

    rows = [{"key": str(i), "question": "q", "answer": str(i)} for i in range(7)]
    kept, told = RowStore(tmp_path / "scores", SCORES), []
    monkeypatch.setattr(scoring, "MANY", 7)
    with pytest.raises(KeyboardInterrupt):
        score_responses(Dies(), rows, kept, told.append)
    assert told == ["dies: a dollar", "dies: 7 answers to score …"]
    assert kept.stored_keys() == {"0", "1", "2", "3"}
