"""The models of a run: where each is, what determines it, and the artifact that makes it if it is missing."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emharness import memory
from emharness.config import BASE
from emharness.organisms import merging, model_folders
from emharness.organisms.chat import load_chat
from emharness.organisms.training_recipe import Training
from emharness.store import Artifact, Store

CODE = 3  # raise when training's results change for the same config

OnStep = Callable[[int, int, float, float], None]


@dataclass(frozen=True)
class Model:
    """`folder` in hub format; `artifact` makes it, None where it lies there already (a local folder, a download)."""

    name: str
    folder: Path
    identity: dict[str, Any]
    artifact: Artifact | None = None
    template: Mapping[str, Any] = field(default_factory=dict)  # variables for its chat template


def base_model(folder: Path | None, identity: dict[str, Any], template: Mapping[str, Any], store: Store) -> Model:
    """The base: the embedded one (`folder` None) is saved once in the store, any other is used where it lies."""
    if folder is not None:
        return Model(BASE, folder, identity, None, template)
    artifact = Artifact("base", "smollm2", model_folders.embedded_identity(), model_folders.save_embedded)
    return Model(
        BASE, store.artifact_path(artifact.stage, artifact.name, artifact.identity), identity, artifact, template
    )


def find_base(source: str, store: Store) -> Path:
    """The folder of a model: "embedded" (saved in the store where it was not yet), a local folder or a hub id."""
    if source != model_folders.EMBEDDED:
        return model_folders.fetch_model("base", source)
    artifact = base_model(None, {}, {}, store).artifact
    assert artifact is not None
    return store.get_artifact(artifact.stage, artifact.name, artifact.identity, artifact.make)[0]


def published_model(name: str, published: Path, fingerprint: str, base: Model, store: Store) -> Model:
    """A published organism: a whole model where it lies (with the base's tokenizer, if it has none), an adapter merged
    into the base."""
    identity: dict[str, Any] = {"published": fingerprint, "base": base.identity, "code": CODE}
    adapter = model_folders.is_adapter(published)
    if adapter and merging.keeps_ends_tied(published):
        identity["tied"] = True  # earlier versions added such an adapter twice
    if not adapter and model_folders.has_tokenizer(published):
        return Model(name, published, identity)

    def fill_folder(folder: Path) -> None:
        (merging.merge_adapter if adapter else model_folders.tokenizer_folder)(base.folder, published, folder)

    return Model(
        name,
        store.artifact_path("organism", name, identity),
        identity,
        Artifact("organism", name, identity, fill_folder),
    )


def trained_model(name: str, training: Training, base: Model, store: Store, on_step: OnStep) -> Model:
    """An organism fine-tuned from the base, or what it was after so many steps."""
    identity = {"base": base.identity, **training.identity(), "code": CODE}

    def fill_folder(folder: Path) -> None:
        from emharness.organisms.training import train_organism

        with memory.keep_freed_blocks():
            losses = train_organism(base.folder, load_chat(base.folder, base.template), training, folder, on_step)
        (folder / "losses.json").write_text(json.dumps(losses))

    return Model(
        name,
        store.artifact_path("organism", name, identity),
        identity,
        Artifact("organism", name, identity, fill_folder),
    )
