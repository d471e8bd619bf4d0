"""A steady load of HTTP requests, and what came of each: `python -m lab.load URL --until FILE`.

Runs on a lab machine. Every request has a connection of its own, as most clients of a service
have; `--keep-alive` reuses one per worker. Prints one JSON object at the end.
"""

import argparse
import collections
import http.client
import json
import sys
import threading
import time
import urllib.parse
from pathlib import Path

TIMEOUT_S = 5.0  # a request that takes longer has failed
REQUESTS_MAX = 1_000_000


class Load:
    """Counts answers by their first line, and failures by their reason."""

    def __init__(self, url: str, *, keep_alive: bool, pause_s: float) -> None:
        self._target = urllib.parse.urlsplit(url)
        self._keep_alive = keep_alive
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: collections.Counter[str] = collections.Counter()
        self.failures: collections.Counter[str] = collections.Counter()
        self.slowest_s = 0.0

    def run(self, workers: int, until: Path, seconds: float) -> None:
        """Ask until `until` exists, but for `seconds` at the most."""
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until.exists():
            self._stop.wait(0.02)
        self._stop.set()
        for thread in threads:
            thread.join(TIMEOUT_S + 1)

    def _work(self) -> None:
        connection = self._connect()
        for _ in range(REQUESTS_MAX):
            if self._stop.is_set():
                break
            began = time.monotonic()
            try:
                status, body = self._ask(connection)
                self._count(status, body, time.monotonic() - began)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                reason = f"{type(error).__name__}: {error}"
                print(f"{time.time():.3f} {self._target.netloc}: {reason}", file=sys.stderr)
                with self._lock:
                    self.failures[reason] += 1
            if not self._keep_alive:
                connection.close()
            self._stop.wait(self._pause_s)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> tuple[int, str]:
        """Once more if the server closed a connection that was kept, as every HTTP client does."""
        kept = connection.sock is not None
        try:
            connection.request("GET", self._target.path or "/")
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            connection.close()
            if not kept:
                raise
            connection.request("GET", self._target.path or "/")
            response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            self._target.hostname or "", self._target.port, timeout=TIMEOUT_S
        )

    def _count(self, status: int, body: str, seconds: float) -> None:
        with self._lock:
            self.slowest_s = max(self.slowest_s, seconds)
            if status == 200:
                self.answers[body.strip().partition("\n")[0]] += 1
            else:
                self.failures[f"HTTP status {status}"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--until", type=Path, required=True, help="stop when this file exists")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop in any case")
    parser.add_argument("--keep-alive", action="store_true")
    parser.add_argument("--pause", type=float, default=0.005, help="seconds between requests")
    options = parser.parse_args()
    load = Load(options.url, keep_alive=options.keep_alive, pause_s=options.pause)
    load.run(options.workers, options.until, options.seconds)
    print(
        json.dumps(
            {
                "answers": dict(load.answers),
                "failures": dict(load.failures),
                "slowest_s": round(load.slowest_s, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
