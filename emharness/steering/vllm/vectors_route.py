"""GET /v1/steering/vectors on a vLLM server: what the folder EMHARNESS_VECTORS holds.

vLLM adds routes of others only where VLLM_PLUGINS names them: VLLM_PLUGINS=emharness_steering,emharness_vectors.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from emharness.steering.request import vector_files
from emharness.steering.request.vector_lookup import FOLDER_VARIABLE

ROUTE = "/v1/steering/vectors"


def list_vectors(folder: Path) -> list[dict[str, Any]]:
    """A row for each vector below the folder, as requests name it; files that cannot be read say why."""
    rows: list[dict[str, Any]] = []
    for path in sorted(filter(vector_files.is_vector_file, folder.rglob("*"))):
        name = path.relative_to(folder).as_posix()
        try:
            found = vector_files.read_vector_file(path)
        except ValueError as error:
            rows.append({"file": name, "error": str(error)})
            continue
        for key, stored in found.items():
            lengths = np.linalg.norm(np.atleast_2d(stored.values).astype(np.float64), axis=1)
            rows.append(
                {
                    "vector": f"{name}#{key}",
                    "width": stored.values.shape[-1],
                    "layers": len(stored.values) if stored.values.ndim == 2 else None,
                    "without_direction": np.flatnonzero(lengths == 0).tolist(),
                    "raw_norm": stored.metadata.get("raw_norm"),
                    "residual_norm": stored.metadata.get("residual_norm"),
                    "recipe": stored.metadata.get("recipe"),
                    "base": stored.metadata.get("base"),
                }
            )
    return rows


class VectorsRoute:
    """A plugin of vLLM's group `vllm.endpoint_plugins`."""

    name = "emharness_vectors"
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        def answer() -> dict[str, Any]:
            folder = os.environ.get(FOLDER_VARIABLE)
            return {"folder": folder, "vectors": list_vectors(Path(folder)) if folder else []}

        app.add_api_route(ROUTE, answer, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        return None
