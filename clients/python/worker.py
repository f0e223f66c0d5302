"""The reference worker: runs Tidewire's jobs in Python 3.9 or newer. Nothing to install: copy it and change what you like.

    from worker import NonRetryable, work
    def send_mail(job, cancelled): return {"sent": mail(job["data"])}
    work({"send-mail": send_mail})

What a handler returns is the job's result. An exception means: try again later. NonRetryable means: it will never work.
To say more it returns a verdict: {"verdict": "done", "result": …, "effects": {"events": [{"type": …, "data": …}], "jobs": […]}},
{"verdict": "snooze", "delay": "5m"}, {"verdict": "retry", "error": …, "delay": …} or {"verdict": "fail", "error": …}.
`cancelled`, a threading.Event, is set when the job was cancelled, its time is over, its lease was lost, or a stop takes too long.
Look at it now and then, and leave quickly by any exception.
"""

import functools, json, os, queue, signal, sys, threading, time, traceback
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

URL, KEY = os.environ.get("TIDEWIRE_URL", "http://127.0.0.1:7400"), os.environ.get("TIDEWIRE_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
FIELDS = ("verdict", "result", "error", "delay", "effects")
PASSING = ("store.busy", "unavailable", "store.failed")  # the same again may work
MOST_BYTES = 256 * 1024  # of one answer
AT_ONCE = 25  # answers in one call
say = functools.partial(print, file=sys.stderr, flush=True)


class NonRetryable(Exception):
    pass


def call(path, body):
    """One call. It waits for a server that is away or busy: leases go on over a restart."""
    while True:
        try:
            with urlopen(Request(f"{URL}/v1{path}", json.dumps(body).encode(), HEADERS), timeout=60) as answer:
                return json.load(answer)
        except HTTPError as error:
            refused = error.read().decode()
            say(path, error.code, refused)
            if error.code < 500 and error.code != 429:
                return {"refused": refused}
        except (OSError, HTTPException) as error:
            say(path, error)
        time.sleep(0.5)


def must(answer):
    """Ends a worker whose call is refused for good: its key or its types are wrong."""
    if "refused" in answer:
        os._exit(1)
    return answer


def text(error):
    """What an error says, as far as the server keeps it."""
    return str(error)[-8_000:].encode("utf-8", "replace").decode()


def settled(results):
    """Settles these together, or each alone when the call is refused. What is refused alone fails with the reason."""
    answer = call("/leases/settle", {"results": results})
    if "refused" not in answer:
        return answer["results"]
    if len(results) > 1:
        return settled(results[:1]) + settled(results[1:])
    failed = {"id": results[0]["id"], "lease": results[0]["lease"], "verdict": "fail", "error": text(answer["refused"])}
    return must(call("/leases/settle", {"results": [failed]}))["results"]


def work(handlers, concurrency=10, lease_seconds=4.5, grace_seconds=10.0):
    """Runs jobs until SIGTERM or SIGINT. Then those that run have the grace to finish; the others are given back.

    Call it in the main thread and end the program after it: its threads end with the process.
    """
    runs, outcomes = {}, queue.Queue()  # (id, lease) -> cancelled, of those that run; and what those that ended came to
    stopping, one_ended = threading.Event(), threading.Event()
    lease_time = f"{int(lease_seconds * 1000)}ms"
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    def run(held, job, cancelled):
        try:
            answer = {"verdict": "release"} if stopping.is_set() else handlers[job["type"]](job, cancelled)
            # What is no JSON, or too large to be sent, is the handler's error.
            if len(json.dumps(answer, allow_nan=False)) > MOST_BYTES:
                raise NonRetryable(f"it answered more than {MOST_BYTES} bytes")
            is_verdict = isinstance(answer, dict) and isinstance(answer.get("verdict"), str)
            said = dict(answer) if is_verdict else {"verdict": "done", "result": answer}
            if said.get("error") is not None:
                said["error"] = text(said["error"])
            outcomes.put((held, said))
        except BaseException as error:  # sys.exit() in a handler ends its thread, and must not keep its place
            verdict = "fail" if isinstance(error, NonRetryable) else cancelled.on_error
            outcomes.put((held, {"verdict": verdict, "error": text(traceback.format_exc())}))

    def settling():
        while True:
            batch = [outcomes.get()]
            while len(batch) < AT_ONCE and not outcomes.empty():  # what has ended since the last call shares this one
                batch.append(outcomes.get())
            results = [{"id": held[0], "lease": held[1], **{name: said.get(name) for name in FIELDS}} for held, said in batch]
            for (held, said), answer in zip(batch, settled(results)):
                error = answer.get("error")
                if error:
                    say("not settled:", answer["id"], error["code"], error["detail"])
                if error and error["code"] in PASSING:
                    outcomes.put((held, said))
                    time.sleep(0.5)
                elif error and error["code"] != "job.lease_lost":  # the job learns why its effects or its result cannot be kept
                    outcomes.put((held, {"verdict": "retry", "error": error["detail"]}))
                elif runs.pop(held, None):
                    one_ended.set()

    def renewing():
        while True:
            time.sleep(lease_seconds / 3)
            held = list(runs.items())
            leases = [{"id": id, "lease": lease} for (id, lease), _ in held]
            answers = must(call("/leases/renew", {"leases": leases, "extend": lease_time}))["leases"] if held else []
            for (_, cancelled), answer in zip(held, answers):
                if answer.get("cancelled"):
                    cancelled.on_error = "cancel"
                if answer.get("cancelled") or answer.get("timedOut") or (answer.get("error") or {}).get("code") == "job.lease_lost":
                    cancelled.set()

    def leasing():
        ask = {"types": list(handlers), "wait": "30s", "lease": lease_time, "worker": f"python-{os.getpid()}"}
        while not stopping.is_set():
            one_ended.clear()
            if len(runs) >= concurrency:
                one_ended.wait()
            for job in must(call("/leases", {**ask, "max": concurrency - len(runs)}))["jobs"]:
                held, cancelled = (job["id"], job.pop("lease")), threading.Event()
                cancelled.on_error = "retry"
                runs[held] = cancelled
                threading.Thread(target=run, args=(held, job, cancelled), daemon=True).start()

    for loop in (settling, renewing, leasing):
        threading.Thread(target=loop, daemon=True).start()
    stopping.wait()
    deadline = time.monotonic() + grace_seconds
    while runs and time.monotonic() < deadline:
        time.sleep(0.02)
    for held, cancelled in list(runs.items()):
        outcomes.put((held, {"verdict": "release"}))
        cancelled.set()
    while runs and time.monotonic() < deadline + grace_seconds:  # a server that is away gets them back when their leases end
        time.sleep(0.02)
