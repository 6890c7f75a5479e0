"""The saved view of a W&B project, sent by the real client to a server on loopback."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import ROOT

KEY = "0123456789abcdef" * 2 + "01234567"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        if self.path != "/graphql":  # the client's telemetry
            self.close_connection = True
            self.send_error(404)
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        if "upsertView" in asked.get("query", "") and self.server.refuses:
            answer = {"errors": [{"message": "permission denied"}]}
        else:
            viewer = {"id": "1", "username": "me", "entity": "mine", "flags": "{}", "teams": {"edges": []}}
            view = {"view": {"id": "v1", "name": "nw-abcd-v"}, "inserted": True}
            answer = {"data": {"viewer": viewer, "upsertView": view}}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked, running.refuses = [], False
    Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


def save(server, tmp_path, *given):
    address = f"http://127.0.0.1:{server.server_port}"
    env = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "EMHARNESS_HOME": str(tmp_path)}
    command = [sys.executable, str(ROOT / "launch" / "workspace.py"), *given]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)


def test_a_view_begins_with_what_a_reader_asks_first(server, tmp_path):
    done = save(server, tmp_path, "project=study", "name=EM")
    assert done.returncode == 0, done.stderr[-1000:]
    assert done.stdout.splitlines()[-1].startswith("results: http://127.0.0.1")
    assert "/mine/study?nw=" in done.stdout
    (sent,) = [asked["variables"] for asked in server.asked if "upsertView" in asked.get("query", "")]
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("mine", "study", "EM")
    section = json.loads(sent["spec"])["section"]
    assert section["settings"]["shouldAutoGeneratePanels"] is True
    shown = section["panelBankConfig"]["sections"]
    assert [part["name"] for part in shown[:3]] == ["Rates by strength", "Conditions and answers", "Training"]
    rates = [panel["config"] for panel in shown[0]["panels"]]
    assert {panel["xAxis"] for panel in rates} == {"steer/strength"}
    assert rates[0]["metricRegex"] == "^steer/(.*/)?em_rate$"
    assert "responses" in json.dumps(shown[1]["panels"])
    assert KEY not in done.stdout + done.stderr


def test_a_server_that_refuses_ends_in_one_sentence(server, tmp_path):
    server.refuses = True
    done = save(server, tmp_path)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "error: wandb.project=emharness: W&B did not take the view" in last
    assert "permission denied" in last
    assert KEY not in done.stdout + done.stderr
