"""Speed of steered vLLM as ratios within one run: python launch/bench.py [parts=[hf]] [repetitions=3]"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from emharness.cli import start_launcher
from emharness.config_checks import tracker_mode
from emharness.errors import UserError
from emharness.generation import bench
from emharness.ranges import check_ranges, refuse_unknown
from emharness.reporting.wandb_tracker import Tracker
from emharness.results.json_records import to_json
from emharness.store import write_json
from emharness.versions import collect_versions


def run(cfg: DictConfig) -> None:
    refuse_unknown(cfg, bench.BenchConfig)
    config: bench.BenchConfig = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    check_ranges(config)
    config.tracker = tracker_mode(config.tracker)
    if unknown := set(config.parts) - set(bench.PARTS):
        raise UserError(f"parts={sorted(unknown)}: must be among {', '.join(bench.PARTS)}")

    from emharness import questions
    from emharness.organisms import model_folders
    from emharness.organisms.chat import load_chat
    from emharness.pipeline import run_context
    from emharness.reporting import terminal

    store = run_context.open_store()
    store.check_writable()
    model = model_folders.base_folder(config.base.source, store)
    shape = model_folders.model_shape(model)[:2]
    chat = load_chat(model, config.base.chat_template_kwargs)
    prompts = [chat.prompt_ids(q.as_messages()) for q in questions.load_questions("broad", "questions")]
    ratios: list[bench.Ratio] = []
    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench.save_vectors(Path(folder), max(config.specs), *shape, config.seed)
        for part in config.parts:
            terminal.print_line(f"bench: {part} …")
            some, measured = bench.BENCHMARKS[part](
                config,
                model,
                Path(folder),
                shape,
                prompts,
                lambda line, part=part: terminal.print_line(f"bench: {part}, {line}"),
            )
            ratios += some
            speeds |= measured
    result = {
        "base": config.base.name,
        "machine": bench.describe_machine(),
        **collect_versions(),
        "ratios": to_json(ratios),
        "tokens_per_s": speeds,
    }
    path = store.root / "bench" / time.strftime("%Y%m%d-%H%M%S") / "bench.json"
    write_json(path, {"schema_version": 1, "config": asdict(config), **result})
    mode, name = tracker_mode(config.tracker), f"bench·{config.base.name}"
    tracker = Tracker(mode, config.wandb, name, result, job_type="bench")
    tracker.log_table("bench", to_json(ratios))
    tracker.finish()
    terminal.show_bench(ratios, speeds)
    print(f"results: {path}", flush=True)


if __name__ == "__main__":
    start_launcher(run, __file__, "bench")
