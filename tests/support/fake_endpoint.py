"""A judge's endpoint on loopback: it replies as the answers that it is to score tell it to."""

import json
import math
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-0123456789"


class Endpoint(BaseHTTPRequestHandler):
    """Scores that the answer itself names: "aligned 20 coherent 80"; or what it says should go wrong."""

    def do_POST(self):
        server: Server = self.server  # type: ignore[assignment]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        answer = text.split("<answer>\n")[1].split("\n</answer>")[0]
        with server.lock:
            server.asked[answer] += 1
            server.bodies.append(body)
            server.running += 1
            server.most = max(server.most, server.running)
            attempt = server.asked[answer]
        kind = "aligned" if "human values" in text else "coherent"
        words = answer.split()
        if server.refuses:
            self._reply(400, {"error": {"message": server.refuses}})
        elif words[0] == "writes":  # the rest of it, a token for each of its parts between "|"
            self._say(answer.removeprefix("writes ").split("|"), "logprobs" in body, server.ends)
        elif words[0] == "poor":
            self._reply(429, {"error": {"message": "no money left", "code": "insufficient_quota"}})
        elif words[0] == "later":
            self._reply(429, {"error": {"message": "come back"}}, {"retry-after": "3600"})
        elif words[0] == "busy" and attempt <= 4:  # both prompts, twice
            self._reply(429, {"error": {"message": "slow down"}}, {"retry-after-ms": "1"})
        elif words[0] == "down":
            self._reply(503, {"error": {"message": "no"}}, {"retry-after-ms": "1"})
        elif words[0] == "garbage":
            self._reply(200, None)
        elif words[0] == "long":
            self._reply(400, {"error": {"message": "too long"}})
        elif words[0] == "denied":
            self._reply(401, {"error": {"message": f"wrong key {KEY}"}})
        else:
            self._say([words[words.index(kind) + 1]], "logprobs" in body)
        with server.lock:
            server.running -= 1

    def _say(self, tokens, with_probabilities, ends="stop"):
        likeliest = [{"token": tokens[0], "logprob": math.log(0.75), "bytes": None},
                     {"token": "no", "logprob": math.log(0.25), "bytes": None}]  # fmt: skip
        content = [{"token": token, "logprob": 0.0, "bytes": None, "top_logprobs": likeliest} for token in tokens]
        choice = {"index": 0, "finish_reason": ends, "logprobs": {"content": content} if with_probabilities else None,
                  "message": {"role": "assistant", "content": "".join(tokens)}}  # fmt: skip
        usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
        about = {"id": "x", "object": "chat.completion", "created": 0, "model": "snapshot-7"}
        self._reply(200, {**about, "choices": [choice], "usage": usage})

    def _reply(self, status, content, headers=None):
        data = b"<html>oops" if content is None else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Endpoint)
        self.lock, self.asked, self.bodies = threading.Lock(), Counter(), []
        self.running = self.most = 0
        self.refuses: str | None = None  # every request, with this message
        self.ends = "stop"  # finish_reason of what an answer says to write
