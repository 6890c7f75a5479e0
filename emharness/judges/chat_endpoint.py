"""Requests to an endpoint that speaks OpenAI's chat completions: waits, retries, and when to stop asking."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from threading import Lock
from typing import Any

from emharness.errors import UserError, join_lines
from emharness.judges.reply import Reply

LONGEST_WAIT = 60.0  # seconds that an endpoint may ask to wait
LONGEST_PAUSE = 8.0  # seconds between tries where it names no time
SHOWN_WAIT = 5.0  # seconds from which a wait is said
FEW = 4  # equal refusals, before anything was answered, that are taken for a refusal of all
USED_UP = "insufficient_quota"  # OpenAI's code of an account without money: waiting does not help
_LENGTH = re.compile(r"context|too long|too many tokens|maximum.*length", re.IGNORECASE)


class Endpoint:
    """One endpoint for many threads."""

    def __init__(self, key: str, base_url: str | None, timeout: float, retries: int):
        import openai

        self._openai = openai
        self._key, self._retries = key, retries
        self._client = openai.OpenAI(api_key=key, base_url=base_url, timeout=timeout, max_retries=0)
        self._lock = Lock()
        self._resumes = 0.0  # time.monotonic() before which nothing is sent
        self._answered = False
        self._stopped: str | None = None  # why nothing is asked any more
        self._refusals = Counter[str]()  # what the endpoint said → how often

    def stop_asking(self, why: str) -> UserError:
        """The error of a judge that cannot continue; other threads send no more requests."""
        self._stopped = f"judge=openai: {why}"
        return UserError(self._stopped)

    def request_completion(self, **request: Any) -> Any:
        """The completion, or a Reply that says why there is none. UserError if no request can succeed."""
        openai = self._openai
        for attempt in range(self._retries + 1):
            time.sleep(max(0.0, self._resumes - time.monotonic()))
            if self._stopped:
                raise UserError(self._stopped)
            try:
                reply = self._client.chat.completions.create(**request)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise self.stop_asking(self._shorten_error(error)) from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return self._refusal_reply(self._shorten_error(error))
            except (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError) as error:
                if getattr(error, "code", None) == USED_UP:
                    raise self.stop_asking(f"{self._shorten_error(error)}; what is scored is kept") from None
                if attempt == self._retries:
                    return Reply(why=self._shorten_error(error), again=True)
                self._wait_retry(_requested_wait(error), attempt)
            except (openai.OpenAIError, ValueError) as error:  # another status; or what came was no JSON
                return Reply(why=self._shorten_error(error), again=True)
            else:
                self._answered = True
                return reply
        raise AssertionError("the last attempt returns")

    def _refusal_reply(self, why: str) -> Reply:
        """This text is too long for it, or the request is not what the endpoint takes. UserError if it takes none."""
        with self._lock:
            self._refusals[why] += 1
            if not self._answered and self._refusals[why] >= FEW:
                raise self.stop_asking(f"the endpoint refuses every request, nothing was scored: {why}")
        return Reply(why=f"refused by the endpoint: {why}", again=not _LENGTH.search(why))

    def _wait_retry(self, suggested: float | None, attempt: int) -> None:
        if suggested is not None and suggested > LONGEST_WAIT:
            raise self.stop_asking(
                f"the endpoint asks to wait {suggested:,.0f} s; start again then, what is scored is kept"
            )
        wait = min(0.5 * 2**attempt, LONGEST_PAUSE) if suggested is None else suggested
        with self._lock:
            resumes = time.monotonic() + wait
            shown = wait >= SHOWN_WAIT and self._resumes < time.monotonic()
            self._resumes = max(self._resumes, resumes)
        if shown:
            print(f"judge=openai: waiting {wait:.0f} s, as the endpoint is busy", file=sys.stderr, flush=True)

    def _shorten_error(self, error: Exception) -> str:
        """An error in a line, without the key that an endpoint may quote."""
        said = join_lines(error, 1000).replace(self._key, "(the key)")
        return f"{type(error).__name__}: {re.sub(r'sk-[^ ]+', '(the key)', said)[:200]}"


def _requested_wait(error: Any) -> float | None:
    """Seconds that an endpoint's reply asks to wait; None where it names none."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None
