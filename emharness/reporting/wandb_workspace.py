"""A saved view of the W&B project: rates by strength, conditions and answers first, everything else below."""

from typing import Any

from emharness.errors import UserError, join_lines


def save_workspace(entity: str | None, project: str, name: str) -> str:
    """Make the view on the server and return its address. UserError where that does not work."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError("launch/workspace.py needs the package wandb-workspaces (extra workspaces)") from None
    from emharness.reporting import wandb_tracker

    try:
        view: Any = ws.Workspace(
            entity=entity or wandb_tracker.default_entity(), project=project, name=name, sections=workspace_sections()
        )
        view._auto_generate_panels = True  # figures, geometry and what a new experiment logs
        view.save()
        return view.url
    except Exception as error:
        reason = join_lines(error) or type(error).__name__
        raise UserError(
            f"wandb.project={project}: W&B did not take the view ({reason}); log in with `wandb login`"
        ) from None


def workspace_sections() -> list[Any]:
    """What a reader asks first, in that order; keys are those of wandb_tracker.py."""
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces.workspaces import Section

    def by_strength(rate: str, title: str) -> Any:  # one vector logs steer/<rate>, several steer/<vector>/<rate>
        return panels.LinePlot(title=title, x="steer/strength", metric_regex=f"^steer/(.*/)?{rate}$")

    return [
        Section(
            name="Rates by strength",
            is_open=True,
            panels=[
                by_strength("em_rate", "misaligned of coherent answers"),
                by_strength("coherent_rate", "coherent answers"),
                by_strength("mean_aligned", "mean alignment score"),
            ],
        ),
        Section(
            name="Conditions and answers",
            is_open=True,
            panels=[panels.WeavePanelSummaryTable(table_name=table) for table in ("conditions", "responses")],
        ),
        Section(name="Training", panels=[panels.LinePlot(title="loss", x="train/step", y=["train/loss"])]),
    ]
