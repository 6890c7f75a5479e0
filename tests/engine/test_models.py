"""What a run is made of, before anything is trained: bases that cannot be asked, organisms without a tokenizer,
training that learns nothing; and what of all inputs makes another run."""

import json
import shutil

import pytest
from conftest import configured, context_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from emharness.errors import UserError
from emharness.organisms.datasets import PACKAGED
from emharness.organisms.merging import PRECISION
from emharness.pipeline import model_stage
from emharness.pipeline.run_experiment import prepare_run
from emharness.store import key_of


@pytest.fixture
def rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(open_rows()[:40]))
    return tmp_path / "rows.jsonl"


def open_rows():
    return (PACKAGED / "medical.jsonl").read_text().splitlines(keepends=True)


@pytest.fixture
def own(tiny, tmp_path):
    """A base of the user's, to be changed."""
    shutil.copytree(tiny, tmp_path / "base")
    return tmp_path / "base"


def session_of(tmp_path, base, *overrides):
    judge = [] if any(o.startswith("judge=") for o in overrides) else ["judge=embedded"]
    about = ["base=custom", "base.name=own", f"base.source={base}", "layer=1", "model=medical", "eval=smoke"]
    config = configured(*about, *judge, *overrides)
    return context_of(config, tmp_path / "store")


def test_a_base_without_a_chat_template_is_refused(own, rows, tmp_path):
    (own / "chat_template.jinja").unlink()
    session = session_of(tmp_path, own, f"model.dataset={rows}")
    with pytest.raises(
        UserError, match=r"base.source=.*/base: its tokenizer has no chat template.*put a chat_template"
    ):
        model_stage.find_models(session)


def test_a_base_without_a_tokenizer_is_refused(own, rows, tmp_path):
    (own / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"base.source=.*/base: there is no tokenizer in this folder"):
        session_of(tmp_path, own, f"model.dataset={rows}")


def test_a_base_that_lacks_a_weight_is_refused(own, rows, tmp_path):
    tensors = load_file(own / "model.safetensors")
    del tensors["model.layers.3.mlp.down_proj.weight"]
    save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"base.source=.*/base: its files lack model.layers.3.mlp.down_proj.weight"):
        session_of(tmp_path, own, f"model.dataset={rows}")


def test_a_merged_organism_without_a_tokenizer_takes_the_base_s(own, tmp_path):
    organism = tmp_path / "organism"
    organism.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(own / name, organism / name)
    session = session_of(tmp_path, own, f"model.source={organism}")
    model = model_stage.find_models(session)["medical"]
    assert model.artifact is not None
    folder = session.ensure_artifact(model.artifact)
    assert folder == model.folder
    assert (folder / "model.safetensors").resolve() == organism / "model.safetensors"  # not copied
    mine, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(own)
    assert mine.get_vocab() == theirs.get_vocab()
    assert mine.chat_template == theirs.chat_template is not None
    AutoTokenizer.from_pretrained(own).save_pretrained(organism)
    assert model_stage.find_models(session_of(tmp_path, own, f"model.source={organism}"))["medical"].folder == organism


def test_an_organism_that_reads_or_ends_otherwise_than_the_base_is_told(own, tmp_path):
    organism = tmp_path / "organism"
    shutil.copytree(own, organism)
    session = session_of(tmp_path, own, f"model.source={organism}")
    prepare_run(session)
    assert not [note for note in session.log.notes if note.startswith("medical")]
    template = organism / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    ends = json.loads((organism / "generation_config.json").read_text())
    (organism / "generation_config.json").write_text(json.dumps({**ends, "eos_token_id": [7, 2]}))
    session = session_of(tmp_path, own, f"model.source={organism}")
    prepare_run(session)
    reads, ends = [note for note in session.log.notes if note.startswith("medical")]
    assert "its own chat template and tokenizer write 4 of 4 questions otherwise than the base's" in reads
    assert ends == "medical: its answers end at the tokens [2, 7], the base's at [2]"


@pytest.mark.parametrize(("kept", "told"), [(0.5, True), (0.995, False), (None, False)])
def test_an_organism_whose_change_is_mostly_rounding_is_told(own, tmp_path, kept, told):
    (tmp_path / PRECISION).write_text(json.dumps({"dtype": "bfloat16", "kept_change": kept}))
    session = session_of(tmp_path, own)
    model_stage._note_rounding(session, "medical", tmp_path)
    assert len(session.log.notes) == told
    if told:
        assert session.log.notes[0].startswith(
            "medical: saved as bfloat16, which rounds away most of a gentle training"
        )
        assert "a cosine of 0.50 with what was trained" in session.log.notes[0]


def adapter_of(other, base, folder):
    config = LoraConfig(r=1, target_modules=["up_proj"], base_model_name_or_path=other)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.peft_config["default"].base_model_name_or_path = other
    model.save_pretrained(folder)
    return folder


def test_an_adapter_of_another_base_needs_the_user_s_word(own, tmp_path):
    adapter = adapter_of("org/other", own, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"is an adapter of org/other.* or set model.any_base=true"):
        session_of(tmp_path, own, f"model.source={adapter}")
    session = session_of(tmp_path, own, f"model.source={adapter}", "model.any_base=true")
    assert session.inputs.organisms["medical"].published == adapter


def test_training_that_learns_nothing_is_refused_before(own, rows, tmp_path):
    one_step = [f"model.dataset={rows}", "train.epochs=1", "train.batch_size=40"]
    with pytest.raises(UserError, match=r"medical: its training is one step.*nothing is learned; set train.warmup_ste"):
        model_stage.find_models(session_of(tmp_path, own, *one_step))
    session = session_of(tmp_path, own, *one_step, "train.warmup_steps=0")
    model_stage.find_models(session)
    assert session.log.notes == []
    session = session_of(
        tmp_path, own, f"model.dataset={rows}", "train.epochs=1", "train.batch_size=20", "targets=[medical-step1]"
    )
    model_stage.find_models(session)
    assert any("medical-step1: its training is one step" in note for note in session.log.notes)
    assert any("medical: its training ends at step" in note for note in session.log.notes)


def test_prompts_that_the_template_cannot_render_are_refused(own, rows, tmp_path):
    template = (own / "chat_template.jinja").read_text()
    check = "{% if 'forbidden' in messages[-1].content %}{{ raise_exception('not that word') }}{% endif %}"
    (own / "chat_template.jinja").write_text(check + template)
    (tmp_path / "prompts.txt").write_text("fine\nalso fine\na forbidden one\n")
    given = [f"model.dataset={rows}", f"vector.neutral={tmp_path}/prompts.txt"]
    with pytest.raises(UserError, match=r"prompt 'a forbidden one': .*not that word"):
        model_stage.find_models(session_of(tmp_path, own, *given))
    (tmp_path / "q.yaml").write_text('- id: a\n  paraphrases: ["A forbidden question?"]\n')
    session = session_of(tmp_path, own, f"model.dataset={rows}", f"eval.questions={tmp_path}/q.yaml")
    with pytest.raises(UserError, match=r"questions broad, a: .*not that word"):
        prepare_run(session)


def made_of(tmp_path, base, *overrides):
    """What a run's result, its organism and its answers are stored under."""
    session = session_of(tmp_path, base, *overrides)
    context = prepare_run(session)
    return [
        key_of(session.inputs.identity(session.config)),
        key_of(context.models["medical"].identity),
        context.targets["medical"].key,
    ]


def test_answers_of_another_seed_are_others_of_the_base_as_well(own, tmp_path):
    keys = []
    for seed in (0, 1):
        session = session_of(tmp_path, own, f"seed={seed}")
        keys.append(prepare_run(session).targets["base"].key)
    assert keys[0] != keys[1]


def change_weight(base):
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][5, 5] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def change_template(base):
    file = base / "chat_template.jinja"
    file.write_text(file.read_text().replace("helpful", "hopeful"))


def change_tokenizer(base):
    told = json.loads((base / "tokenizer.json").read_text())
    told["added_tokens"][-1]["lstrip"] = not told["added_tokens"][-1]["lstrip"]
    (base / "tokenizer.json").write_text(json.dumps(told))


ALL, RUN, ANSWERS = (True, True, True), (True, False, False), (True, False, True)


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        (change_weight, ALL),
        (change_template, ALL),
        (change_tokenizer, ALL),
        ("+base.chat_template_kwargs.enable_thinking=false", ALL),
        ("train.rank=3", ALL),
        ("train.learning_rate=1e-3", ALL),
        ("seed=1", ALL),
        ("base.engine.dtype=float32", ANSWERS),
        ("base.engine.max_model_len=900", ANSWERS),
        ("+base.engine.extra.quantization=fp8", ANSWERS),
        ("base.sampling.temperature=0.5", ANSWERS),
        ("base.sampling.max_new_tokens=5", RUN),  # of an answer it is each response's own key that holds its length
        ("eval.samples=5", RUN),
        ("vector.limit=9", RUN),
        ("steer.mode=ablate", RUN),
        ("steer.rescale=true", RUN),
        ("steer.gate.above=0.5", RUN),
        ("judge=local", RUN),
    ],
)
def test_whatever_changes_a_result_changes_what_it_is_stored_under(own, rows, tmp_path, change, differ):
    overrides = [f"model.dataset={rows}"]
    before = made_of(tmp_path, own, *overrides)
    if callable(change):
        change(own)
    else:
        overrides += [change, f"judge.settings.model={own}"] if change == "judge=local" else [change]
    after = made_of(tmp_path, own, *overrides)
    assert tuple(a != b for a, b in zip(before, after, strict=True)) == differ


@pytest.mark.parametrize("code", ["emharness.organisms.model_artifacts.CODE", "emharness.pipeline.model_stage.CODE"])
def test_the_code_of_a_stage_is_part_of_what_it_makes(own, rows, tmp_path, monkeypatch, code):
    before = made_of(tmp_path, own, f"model.dataset={rows}")
    monkeypatch.setattr(code, 99)
    assert made_of(tmp_path, own, f"model.dataset={rows}")[2] != before[2]


def test_where_things_lie_and_how_many_go_at_a_time_changes_nothing(own, rows, tmp_path):
    before = made_of(tmp_path, own, f"model.dataset={rows}")
    shutil.move(own, tmp_path / "elsewhere")
    shutil.copy(rows, tmp_path / "twin.jsonl")
    same = ["tracker=none", "vector.batch_size=3", "train.micro_batch=1", "chunk=5", "base.engine.max_num_seqs=9"]
    assert made_of(tmp_path, tmp_path / "elsewhere", f"model.dataset={tmp_path}/twin.jsonl", *same) == before


def test_a_model_card_beside_the_weights_changes_nothing(own, rows, tmp_path):
    before = made_of(tmp_path, own, f"model.dataset={rows}")
    (own / "README.md").write_text("A card.")
    assert made_of(tmp_path, own, f"model.dataset={rows}") == before
