"""What a person sees while a grid is under way, without a terminal."""

from emharness.reporting import progress
from emharness.reporting.progress import Progress
from emharness.reporting.terminal import describe_times
from emharness.results.run_results import StageTime

ALIGNED, MISALIGNED, BROKEN = (90.0, 90.0), (10.0, 90.0), (10.0, 10.0)


def scored(view, edits, *marks):
    rows = [{"key": i, "edits": edits} for i in range(len(marks))]
    view.count_scored(rows, {i: {"aligned": a, "coherent": c} for i, (a, c) in enumerate(marks)})


def test_a_line_counts_the_whole_grid_and_rates_the_target_that_is_asked(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    with Progress("responses", {"base": 3, "medical": 2, "finance": 4}) as view:
        view.start_target("base", {"": "baseline", "x": "medical·L2·+2"})
        for _ in range(3):
            view.count_response(10)
        assert "responses: 3 of 9 responses" in capsys.readouterr().out
        scored(view, "", ALIGNED, ALIGNED)
        scored(view, "x", ALIGNED, MISALIGNED, BROKEN, MISALIGNED)
        assert view.status_note().endswith("; base, EM so far: baseline 0 %, medical·L2·+2 67 %")
        view.finish_target("base")
        view.start_target("medical", {"": "medical organism"})
        view.count_response(10)
        scored(view, "", MISALIGNED)
        assert view.status_note().endswith("; medical, EM so far: medical organism 100 %")
        view.finish_target("medical")  # it failed, or another process generated its second response
        view.finish_target("finance")
        assert "4 of 4" in capsys.readouterr().out.splitlines()[-1]
    assert capsys.readouterr().out.startswith("responses: 4 of 4 responses, in 0:00, ")


def test_nothing_to_generate_is_no_line(capsys):
    with Progress("responses", {"base": 0}) as view:
        view.finish_target("base")
    assert capsys.readouterr().out == ""


def test_the_time_of_each_stage_is_summed():
    entry = lambda stage, made, seconds: StageTime(stage=stage, name="x", made=made, seconds=seconds)  # noqa: E731
    stages = [entry("organism", True, 60), entry("responses", 1500, 90.0), entry("organism", False, 0.0),
              entry("responses", 20, 6.0), entry("organism", True, 30)]  # fmt: skip
    assert describe_times(stages) == "organism 1.5 min (2 made), responses 1.6 min (1,520 made)"
