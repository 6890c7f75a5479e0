"""The plan counts what is stored and what is not, before anything is made."""

import shutil
from dataclasses import replace

import pytest
from conftest import checked, configured, context_of

from emharness.errors import UserError
from emharness.experiments import EXPERIMENTS
from emharness.generation.response_store import RESPONSES, SCORES
from emharness.pipeline import run_plan
from emharness.pipeline.measured_speeds import DEFAULTS, Speeds
from emharness.pipeline.multirun import join_experiments
from emharness.pipeline.run_experiment import prepare_run
from emharness.pipeline.stages import make_plan


@pytest.fixture
def planned(base, tmp_path):
    """A function: overrides → (plan, streams), with the embedded base's folder as a custom base."""

    def make(*overrides):
        config = configured("base.source=" + str(base), "eval=smoke", "sweep.limit=2", "vector.limit=6", *overrides)
        make.context = prepare_run(context_of(config, tmp_path))
        return make_plan(make.context), make.context.targets

    return make


def test_everything_is_counted_once_and_by_target(planned):
    found, _ = planned("steer.strength=[0,2]")
    assert [(e.stage, e.name, e.stored) for e in found.stages] == [
        ("organism", "medical", False),
        ("vectors", "medical", False),
    ]
    by_target = {entry.target: entry for entry in found.targets}
    sweep = 2 * 2 * (1 + 4 * 2)  # questions × samples × (unsteered, layers × strengths)
    # The unsteered base; strength 0 and 2, not told apart from it before the vector is known; four random directions.
    main = (4 * 2 + 4 * 1) * 3 + 4 * 4 * 1
    assert by_target["smollm2"].responses == 6 + sweep + main
    assert by_target["medical"].responses == 6 + 4 * 2 + 4 * 1
    assert found.responses == sum(e.responses for e in found.targets)
    assert (found.starts, found.layers) == (2, {})
    assert set(found.assumed) == {"training", "extraction", "start", "responses", "margins"}
    without, _ = planned("steer.strength=[0,2]", "eval.pairs=0")
    pairs = {
        e.target: (e.seconds - o.seconds) * DEFAULTS["margins"]
        for e, o in zip(found.targets, without.targets, strict=True)
    }
    assert pairs == {"smollm2": pytest.approx(6 * 7), "medical": pytest.approx(6)}  # six of each condition
    assert found.disk > sum(f.bytes for f in found.stages) > 200e6


def test_a_multirun_plans_a_layer_sweep_only_where_a_job_needs_one(base, tmp_path):
    jobs = [configured("experiment=seeds", "vectors=[medical]", f"targets=[{name}]") for name in ("base", "medical")]
    joined = join_experiments(jobs)
    assert not joined.needs_layer_choice
    assert join_experiments([*jobs, configured()]).needs_layer_choice
    asked = [replace(_scope(), targets=tuple(job.targets)) for job in jobs]
    every = [cell for about in asked for cell in EXPERIMENTS["seeds"].cells(about)]
    assert joined.cells(_scope()) == list(dict.fromkeys(every))


def test_a_judge_with_an_engine_and_the_base_s_own_vector_are_stages(planned, base, tmp_path):
    found, streams = planned("judge=local", f"judge.settings.model={base}", "vector.recipe=mean_diff")
    other = {e.stage: e for e in found.stages}
    judged = found.responses  # this recipe reads no answers, so all of them are judged
    assert other["judge"].name == f"{base.name} ({judged:,} answers)"
    assert other["judge"].seconds > 0
    assert [e.name for e in found.stages if e.stage == "vectors by mean_diff"] == ["base"]
    cell = next(c for c in EXPERIMENTS["main"].cells(_scope()) if c.questions == "broad" and not c.condition.edits)
    requests = streams["base"].list_requests(cell, {})
    empty = dict.fromkeys(SCORES.names)
    identity = checked(configured("judge=local", f"judge.settings.model={base}"), tmp_path / "own").judge.identity
    streams["base"].open_scores(identity).add_rows([empty | {"key": r.key} for r in requests])
    again, _ = planned("judge=local", f"judge.settings.model={base}", "vector.recipe=mean_diff")
    assert f"({judged - len(requests):,} answers)" in {e.stage: e for e in again.stages}["judge"].name
    assert "judge" not in {e.stage for e in planned()[0].stages}


def test_what_is_stored_is_not_planned_again(planned):
    _, streams = planned()
    prompts = streams["base"].prompts["broad"]
    cell = next(c for c in EXPERIMENTS["main"].cells(_scope()) if c.questions == "broad" and not c.condition.edits)
    requests = streams["base"].list_requests(cell, {})
    empty = dict.fromkeys(RESPONSES.names)
    streams["base"].responses.add_rows([empty | {"key": r.key} for r in requests])
    found, _ = planned()
    assert len(requests) == 2 * len(prompts)
    assert {e.target: e.stored for e in found.targets} == {"smollm2": len(requests), "medical": 0}


def _scope():
    from support.planted_answers import scope

    return scope(vectors=("medical",), targets=("base",), layers={"medical": 0}, samples=2, max_new_tokens=64)


def test_a_plan_that_needs_more_disk_than_there_is_is_refused(planned, tmp_path, monkeypatch):
    found, _ = planned()
    run_plan.check_disk(found, tmp_path / "not" / "yet")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, found.disk // 2))
    with pytest.raises(UserError, match=r"the plan needs \d+\.\d GB in EMHARNESS_HOME=") as error:
        run_plan.check_disk(found, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.engine
def test_an_engine_that_would_not_start_is_refused_before_anything_is_made(planned, base):
    judge = ("judge=local", f"judge.settings.model={base}")
    found, _ = planned(*judge)
    run_plan.check_engines(planned.context, found)
    found, _ = planned("+base.engine.extra.nosuch=1")
    with pytest.raises(UserError, match=r"^base=smollm2: vLLM does not start: .* argument 'nosuch'$"):
        run_plan.check_engines(planned.context, found)
    run_plan.check_engines(planned.context, replace(found, targets=[]))  # everything is answered
    found, _ = planned(*judge, "+judge.settings.extra.nosuch=1")
    with pytest.raises(UserError, match=rf"^judge=local, {base.name}: vLLM does not start: .* argument 'nosuch'$"):
        run_plan.check_engines(planned.context, found)
    run_plan.check_engines(planned.context, replace(found, stages=[]))  # and judged


def test_speeds_are_those_of_earlier_runs_and_small_ones_do_not_count(tmp_path):
    speeds = Speeds(tmp_path, "tiny")
    assert speeds.estimate_seconds("responses", 360) == 360 / DEFAULTS["responses"]
    assert speeds.assumed == ["responses"]
    speeds.record_speed("responses", 10, 1.0)
    assert not (tmp_path / "speeds").exists()
    speeds.record_speed("responses", 1000, 10.0)
    speeds.record_speed("responses", 1000, 5.0)
    again = Speeds(tmp_path, "tiny")
    assert again.estimate_seconds("responses", 300) == 2.0
    assert again.assumed == []
    assert Speeds(tmp_path, "other").assumed == []
