"""See every answer in Inspect View: python launch/view.py [run=<results.json>] [port=7575] | bundle=<folder>"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from emharness.cli import read_settings, start_launcher
from emharness.errors import UserError
from emharness.ranges import Range

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"
HOST = "127.0.0.1"


def run(cfg: DictConfig) -> None:
    """Write the logs of the runs that are asked for, unless they are there, then serve them or bundle a site."""
    settings = read_settings(cfg, CONF / "view.yaml")
    bundle = Path(settings["bundle"]).expanduser() if settings["bundle"] else None
    if bundle is None:
        check_port(settings["port"])
    elif bundle.exists() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise UserError(f"bundle={bundle}: must be a new or empty folder")
    from emharness.reporting import finished_runs
    from emharness.reporting.terminal import print_line
    from emharness.store import Store, artifacts_home, check_writable, partial_name

    if bundle is not None:
        check_writable("bundle", bundle)
    store, asked = Store(artifacts_home()), settings["run"]
    paths = [asked] if isinstance(asked, str) else asked or []
    found = [finished_runs.read_run(Path(path).expanduser()) for path in paths] or [
        finished_runs.newest_run(store.root)
    ]
    store.check_writable()
    try:
        from emharness.sharing import inspect_logs
    except ImportError as error:
        raise UserError(f"launch/view.py needs inspect-ai (pip install 'emharness[inspect]'): {error}") from None

    print_line(f"logs of {', '.join(one.name for one in found)} …")
    folders = [inspect_logs.stored_logs(one, store) for one in found]
    with tempfile.TemporaryDirectory(dir=store.root, prefix=partial_name()) as several:
        logs = folders[0]
        if len(folders) > 1:  # side by side in one list; Inspect follows no symbolic links
            logs = Path(several)
            for one, folder in zip(found, folders, strict=True):
                shutil.copytree(folder, logs / one.name, copy_function=os.link)
        if bundle is not None:
            from inspect_ai.log import bundle_log_dir

            bundle_log_dir(str(logs), str(bundle), overwrite=True)
            print(f"results: {bundle / 'index.html'}", flush=True)
            return
        print_line(f"logs: {logs}")
        print(f"open http://{HOST}:{settings['port']} (Ctrl-C ends it)", flush=True)
        serve_logs(logs, settings["port"])


def serve_logs(logs: Path, port: int) -> None:
    """Inspect's own viewer, until it is interrupted or ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends this process ends the viewer, as Ctrl-C does
    command = [sys.executable, "-m", "inspect_ai", "view", "start", "--log-dir", str(logs), "--recursive"]
    try:
        status = subprocess.run([*command, "--host", HOST, "--port", str(port), "--no-trust-content"]).returncode
    except KeyboardInterrupt:
        return
    if status not in (0, -2, -15):
        raise UserError(f"inspect view ended with status {status}")


def check_port(port: Any) -> None:
    """UserError if nothing can be served at this port."""
    allowed = Range(least=1, most=65535)
    if isinstance(port, bool) or not isinstance(port, int) or port not in allowed:
        raise UserError(f"port={port}: must be a whole number, {allowed}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port={port}: {error.strerror or error}; name another one, e.g. port={port + 1}") from None


if __name__ == "__main__":
    start_launcher(run, __file__, "tools/view")
