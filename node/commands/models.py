"""`s2node models …`: the bundles there are and which are in use. The node changes models between two jobs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import BundleInvalid
from node.commands.exits import CONFIG
from node.commands.options import AsJson, ConfigFile, as_owner_of, settings_of
from node.commands.screen import err, moment, say, show_rows, show_table
from node.models import ModelStore

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="See, check and change the models in use.",
)

Model = Annotated[str, typer.Argument(help="Folder of a bundle, or the id of a model that is listed.")]


@app.command("list")
def list_models(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List every bundle: the shipped ones, those under data_dir/models and those of engine.bundles_dir."""
    rows = ModelStore(settings_of(config)).list()
    if as_json:
        show_rows([asdict(row) for row in rows])
        return
    show_table(
        ("phase", "model", "family", "active", "digest", "folder", "problem"),
        [
            (
                row.phase,
                row.model_id,
                row.family,
                "active" if row.active else "",
                (row.digest or "")[:12],
                row.folder,
                row.problem,
            )
            for row in rows
        ],
    )


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Folders or ids; without any, the active models."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Check every digest of bundles; exit 78 if one is damaged or unknown."""
    store = ModelStore(settings_of(config))
    folders = [store.find(name) for name in names] if names else list(store.active().values())
    damaged = [folder for folder in folders if not _is_whole(store, folder)]
    if damaged:
        raise typer.Exit(CONFIG)


@app.command()
def activate(model: Model, config: ConfigFile = None) -> None:
    """Use a model for its phase from the next job on: it is verified and copied to data_dir/models."""
    store = _own_store(config)
    bundle = store.activate(store.find(model))
    say(f"{bundle.manifest.phase}: {bundle.manifest.model_id} is active from the next job on")


@app.command()
def rollback(
    phase: Annotated[str, typer.Argument(help="arterial or venous.")], config: ConfigFile = None
) -> None:
    """Go back to the model that was in use for a phase before; at last the shipped one."""
    store = _own_store(config)
    say(f"{phase}: {store.rollback(phase)} is active from the next job on")


@app.command()
def history(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show every change of the models in use, oldest first."""
    changes = ModelStore(settings_of(config)).history()
    if as_json:
        show_rows([change.model_dump(mode="json") for change in changes])
        return
    show_table(
        ("changed", "phase", "model", "digest"),
        [
            (moment(change.at), change.phase, change.model_id or "shipped", (change.digest or "")[:12])
            for change in changes
        ],
    )


def _own_store(config: Path | None) -> ModelStore:
    """The store, to be changed; raises PermissionError where the data folder belongs to another user."""
    settings = settings_of(config)
    as_owner_of(settings.storage.data_dir)
    return ModelStore(settings)


def _is_whole(store: ModelStore, folder: Path) -> bool:
    try:
        bundle = store.verify(folder)
    except BundleInvalid as error:
        err.print(str(error), markup=False)
        return False
    manifest = bundle.manifest
    say(f"{folder}: {manifest.phase} {manifest.model_id}, {len(manifest.files)} files, every digest right")
    return True
