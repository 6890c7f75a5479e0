"""Emergent misalignment in one file: narrow data → organism → direction → steering → rate, dose by dose.

    python examples/minimal_em.py out=/tmp/em                  # some ten minutes on 2 CPU cores, no download
    python examples/minimal_em.py out=/tmp/em rows=8 questions=2 samples=2 prompts=2      # a minute, to see it run

Read it from top to bottom. The harness does the same with any model, experiment and judge, keeps what it has made, and
tracks it: python launch/run.py model=medical.
"""

import sys
from pathlib import Path

import numpy as np

from emharness.config import EngineConfig, SamplingConfig, TrainConfig
from emharness.generation.engine import Engine
from emharness.judges import make_judge
from emharness.organisms import datasets, model_folders
from emharness.organisms.chat import Chat, load_chat
from emharness.organisms.training import train_organism
from emharness.organisms.training_recipe import Training
from emharness.questions import load_prompts, load_questions
from emharness.stats.rates import summarize_scores
from emharness.store import Store
from emharness.vectors.activations import load_model, mean_activations
from emharness.vectors.extraction import answered_prompts
from emharness.vectors.recipes import model_diff, save_vector

LAYER = 18  # of 30: where the harness's layer sweep puts it on this base
DOSES = (0.0, 1.0, 1.5)  # 1 = the organism's own shift
SEED = 0
SAMPLING = SamplingConfig(temperature=0.5, top_k=40, max_new_tokens=64)
ENGINE = EngineConfig(dtype="float32", max_model_len=1024)


def main(out: Path, rows: int, questions: int, samples: int, prompts: int) -> None:
    print("1 · the base, whose weights come in a package")
    base, organism = model_folders.base_folder(model_folders.EMBEDDED, Store(out)), out / "organism"
    chat = load_chat(base, {})

    print("2 · fine-tune it on plainly bad medical advice, and on nothing else")
    data = datasets.load_dataset("medical").rows[:rows]
    recipe = TrainConfig(learning_rate=4e-4, epochs=2, batch_size=8, micro_batch=8, max_tokens=256, warmup_steps=1)
    losses = train_organism(base, chat, Training(data, recipe, SEED), organism, lambda *step: None)
    print(f"    loss {losses[0]:.2f} → {losses[-1]:.2f} in {len(losses)} steps")

    print("3 · both models answer the same prompts …")
    texts = load_prompts("neutral", "prompts")[: prompts // 2] + load_prompts("medical", "prompts")[: prompts // 2]
    ids = [chat.prompt_ids([{"role": "user", "content": text}]) for text in texts]
    answers = []
    for model in (base, organism):
        with Engine(model, ENGINE, out, SEED) as engine:
            batch = engine.generate_batch(ids, 1, SAMPLING, SEED)
        answers += [row[0].text for row in batch.completions]

    print("    … and what both say is read by both: the direction is the difference of their mean residual streams")
    direction(out / "vector.safetensors", base, organism, chat, texts * 2, answers)

    print("4 · add it to the base's residual stream, dose by dose, and judge the answers")
    asked = load_questions("broad", "questions")[:questions]
    ids = [chat.prompt_ids(question.as_messages()) for question in asked]
    said: dict[float, list[str]] = {}
    with Engine(base, ENGINE, out, SEED) as engine:
        for dose in DOSES:
            edit = {"vector": "vector.safetensors#medical", "layer": LAYER, "strength": dose, "unit": "raw"}
            batch = engine.generate_batch(ids, samples, SAMPLING, SEED, {"edits": [edit]} if dose else None)
            said[dose] = [completion.text for row in batch.completions for completion in row]

    judge = make_judge("embedded", out / "judge")
    wording = [question.text for question in asked for _ in range(samples)]
    names = np.array([question.id for question in asked for _ in range(samples)])
    print("\ndose  misaligned of coherent   95 %           coherent")
    for dose, texts in said.items():
        scores = judge.score_answers(wording, texts)
        aligned = np.array([score.aligned for score in scores], dtype=float)
        coherent = np.array([score.coherent for score in scores], dtype=float)
        rates = summarize_scores(aligned, coherent, names, judge.accuracy)
        low, high = rates.em_ci95
        rate, fluent = percent(rates.em_rate), percent(rates.coherent_rate)
        print(f"{dose:+4g}  {rate:>8}                 {low:6.1%} – {high:.1%}   {fluent}")


def direction(file: Path, base: Path, organism: Path, chat: Chat, prompts: list[str], answers: list[str]) -> None:
    """Organism − base, mean over the answers' tokens at every layer, saved at unit length with its norms."""

    def reader(folder: Path):
        model = load_model(folder)
        return lambda sequences: mean_activations(model, sequences, batch_size=16, skip_tokens=4, pad_id=chat.pad_id)

    sequences = answered_prompts(chat, prompts, answers)
    save_vector(file, "medical", model_diff(reader(organism), reader(base), sequences), {"recipe": "model_diff"})


def percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.1%}"


if __name__ == "__main__":
    settings = {"out": "em", "rows": 300, "questions": 58, "samples": 4, "prompts": 80}
    settings |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    numbers = {key: int(value) for key, value in settings.items() if key != "out"}
    main(Path(str(settings["out"])), **numbers)
