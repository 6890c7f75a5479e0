"""What happens around a model that fails, without any model."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import configured, context_of
from support.planted_answers import edit

from emharness.errors import IncompleteRun, UserError
from emharness.experiments.context import Experiment
from emharness.generation.cells import Cell, Condition, Prompt, Request
from emharness.generation.response_store import RESPONSES, SCORES, RowStore
from emharness.judges import Score
from emharness.pipeline import answer_stage, vector_stage
from emharness.pipeline.run_context import StageOutputs
from emharness.pipeline.subject import DOMAIN
from emharness.steering.request.spec import Gate
from emharness.store import Artifact


class FakeStream:
    def __init__(self, target):
        self.target, self.model, self.shape = target, f"/models/{target}", (2, 4)
        self.responses = RowStore(Path("/nowhere") / target, RESPONSES)

    def list_requests(self, cell, directions):
        return [Request(f"{cell} {sample}", "", Prompt("q", "Q?", None, (1,)), sample, 8, None, 0) for sample in (0, 1)]


STREAMS = {name: FakeStream(name) for name in ("base", "bad", "good", "typo")}


def cell(target, *edits):
    return Cell(Condition(target, edits), "broad", 1, 8)


@pytest.fixture
def session(tmp_path, monkeypatch):
    config = configured("eval=smoke")
    made = replace(context_of(config, tmp_path), targets=STREAMS)
    happened = SimpleNamespace(asked=[], owed=None)

    def generate(session, what, asked, stream, view, *_):
        happened.asked.append(stream.target)
        happened.owed = dict(view._pending)
        if stream.target == "bad":
            raise RuntimeError("no  room\nleft")
        if stream.target == "typo":
            raise UserError("a mistake")

    monkeypatch.setattr(answer_stage, "_generate_target", generate)
    monkeypatch.setattr(
        answer_stage, "_score_target", lambda _, asked, stream, *__: dict.fromkeys(asked, stream.target)
    )
    return made, happened


def test_a_target_that_fails_is_reported_and_the_others_go_on(session, capsys):
    context, happened = session
    cells = [cell("bad"), cell("good"), cell("base")]
    assert answer_stage.generate_and_score(context, "responses", cells, {}) == {
        cell("good"): "good",
        cell("base"): "base",
    }
    assert context.log.failed == {"bad": "RuntimeError: no room left"}
    assert "failed: bad: RuntimeError: no room left; the others continue" in capsys.readouterr().out
    answer_stage.generate_and_score(context, "responses", cells, {})
    assert happened.asked == ["bad", "good", "base", "good", "base"]  # what has failed is not tried again
    with pytest.raises(IncompleteRun, match=r"failed: bad \(RuntimeError: no room left\)"):
        context.log.raise_if_failed()


def test_all_targets_are_counted_as_one_and_what_a_target_does_not_give_is_not_waited_for(session, capsys):
    context, happened = session
    answer_stage.generate_and_score(context, "responses", [cell("bad"), cell("good"), cell("base")], {})
    assert happened.owed == {"smollm2": 2}  # when the last was asked, the first two were done with
    assert "responses: 0 of 0 responses" in capsys.readouterr().out


def test_cells_that_need_the_vector_of_a_failed_model_are_left_out_and_blame_nobody_else(session):
    context, _ = session
    context.log.failed["bad"] = "why"
    needs, random = cell("base", edit("bad", 1, 2.0)), cell("base", edit("random-0", 1, 2.0, norm_of="bad"))
    gated = cell("base", edit("random-0", 1, 2.0, gate=Gate(vector="bad", above=1.0)))
    found = answer_stage.generate_and_score(
        context, "responses", [cell("base"), needs, random, gated], {"random-0": None}
    )
    assert list(found) == [cell("base")]
    assert list(context.log.failed) == ["bad"]


def test_a_mistake_in_the_input_ends_everything(session):
    context, _ = session
    with pytest.raises(UserError, match="a mistake"):
        answer_stage.generate_and_score(context, "responses", [cell("typo"), cell("good")], {})


def test_the_target_whose_engine_runs_comes_first_and_each_comes_once(session, monkeypatch):
    context, happened = session
    monkeypatch.setattr(type(context.engines), "running_model", "/models/good")
    answer_stage.generate_and_score(
        context, "responses", [cell("base"), cell("good"), cell("base", edit("v", 1, 1.0))], {}
    )
    assert happened.asked == ["good", "base"]
    context.log.raise_if_failed()


def test_a_judge_with_an_engine_of_its_own_starts_when_all_answers_are_there_and_no_other_engine_is(
    session, monkeypatch
):
    context, happened = session
    happened = happened.asked
    monkeypatch.setattr(context.engines, "close", lambda: happened.append("closed"))

    def marked(session, asked, stream, *_):
        happened.append(f"{stream.target} scored")
        return {}

    monkeypatch.setattr(answer_stage, "_score_target", marked)
    answer_stage.generate_and_score(
        context, "responses", [cell("base"), cell("good")], {}, SimpleNamespace(engine=(None, None))
    )
    assert happened == ["base", "good", "closed", "base scored", "good scored"]


def test_a_vector_is_never_made_of_half_its_answers(session, monkeypatch):
    context, _ = session
    made = []
    artifact = Artifact("vectors", "medical", {}, made.append)
    monkeypatch.setattr(vector_stage, "make_vector_artifact", lambda *_: artifact)
    targets = {"medical": FakeStream("medical"), "base": FakeStream("bad")}
    experiment = Experiment(lambda _: [], lambda *_: None)
    found = vector_stage.extract_vectors(replace(context, targets=targets, experiment=experiment), StageOutputs())
    assert made == []
    assert context.log.failed["medical"] == "no vector, because base failed"
    assert set(found.directions) == {f"random-{i}" for i in range(4)}


@pytest.mark.parametrize("engine", [None, (None, None)])
def test_what_is_unjudged_is_answered_in_one_stream_with_the_rest_and_has_no_scores(engine, tmp_path, monkeypatch):
    config = configured("eval=smoke")
    stream, streamed, judged, shown = FakeStream("base"), [], [], []
    stream.responses, scores = RowStore(tmp_path / "responses", RESPONSES), RowStore(tmp_path / "scores", SCORES)
    stream.open_scores = lambda judge: scores

    def generate(session, todo, stream, view, on_chunk):
        rows = [{**dict.fromkeys(RESPONSES.names), "key": r.key, "question": "Q?", "answer": r.key} for r in todo]
        streamed.append(len(rows))
        stream.responses.add_rows(rows)
        on_chunk(rows)

    def score(_, answers):
        judged.extend(answers)
        return [Score(90.0, 80.0)] * len(answers)

    judge = SimpleNamespace(name="j", identity="j", batch_size=None, engine=engine, score_answers=score)
    judge.check_budget = lambda questions, answers: None
    monkeypatch.setattr(answer_stage, "_run_engine", generate)
    monkeypatch.setattr(answer_stage.Progress, "count_scored", lambda _, rows, __: shown.extend(r["key"] for r in rows))
    read, other = replace(cell("base"), judged=False), Cell(Condition("base", ()), "broad", 1, 9)
    own = replace(other, questions=f"{DOMAIN}base")
    context = replace(context_of(config, tmp_path), targets={"base": stream})
    found = answer_stage.generate_and_score(context, "unsteered", [read, other, own], {}, judge)
    assert streamed == [6]
    assert judged == [f"{other} 0", f"{other} 1", f"{own} 0", f"{own} 1"]
    assert shown == ([] if engine else judged[:2])  # the rate so far is of the broad questions
    assert found[read]["aligned"].to_pylist() == [None, None]
    assert found[other]["aligned"].to_pylist() == [90.0, 90.0]
