"""One running engine at a time, kept between the conditions, stages and sweep jobs of a process."""

from pathlib import Path

from emharness.config import EngineConfig
from emharness.generation.engine import Engine


class Engines:
    """Returns the engine of a model; starting one for another model stops the running one."""

    def __init__(self, vectors: Path):
        self.vectors = vectors
        self.started = 0
        self._key: tuple[str, str] | None = None
        self._engine: Engine | None = None

    @property
    def running_model(self) -> str | None:
        """Folder of the model whose engine runs."""
        return self._key[0] if self._key else None

    def get_engine(self, model: Path, config: EngineConfig, seed: int) -> Engine:
        key = (str(model), repr((config, seed)))
        if self._engine is None or self._key != key:
            self.close()
            self._engine = Engine(model, config, self.vectors, seed)
            self._key = key
            self.started += 1
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine, self._key = None, None
