"""The reference worker: runs Tidewire's jobs in Python 3.9 or newer. Nothing to install: copy it and change what you like.

    from worker import NonRetryable, work
    def send_mail(job, cancelled): return {"sent": mail(job["data"])}
    work({"send-mail": send_mail})

What a handler returns is the job's result. An exception means: try again later. NonRetryable means: it will never work.
`cancelled` is a threading.Event. It is set when somebody cancelled the job, when its time is over, when its lease was lost, and at the
end of a stop. Look at it now and then and leave quickly, by any exception. What a run whose time is over comes to still counts: an
exception is tried again.
"""

import json, os, queue, signal, sys, threading, time, traceback
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

URL, KEY = os.environ.get("TIDEWIRE_URL", "http://127.0.0.1:7400"), os.environ.get("TIDEWIRE_KEY")


class NonRetryable(Exception):
    pass


def call(path, body):
    """One call. It waits for a server that is away or busy: leases go on over a restart. Any other refusal is a mistake to mend."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    while True:
        try:
            with urlopen(Request(f"{URL}/v1{path}", json.dumps(body).encode(), headers), timeout=60) as answer:
                return json.load(answer)
        except HTTPError as error:
            print(path, error.code, error.read().decode(), file=sys.stderr, flush=True)
            if error.code < 500 and error.code != 429:
                os._exit(1)
        except (OSError, HTTPException) as error:
            print(path, error, file=sys.stderr, flush=True)
        time.sleep(0.5)


def work(handlers, concurrency=10, lease_seconds=5.0, grace_seconds=10.0):
    """Runs jobs until SIGTERM or SIGINT. Then those that run have the grace to finish; the others are given back.

    Call it in the main thread and end the program after it: its threads end with the process.
    """
    running = {}  # what this worker holds: lease -> (job, cancelled)
    late = set()  # the leases of runs whose time is over
    outcomes = queue.Queue()  # (job, outcome) of runs that have ended
    free = threading.Semaphore(concurrency)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())

    def run(job, cancelled):
        try:
            result = handlers[job["type"]](job, cancelled)
            json.dumps(result)  # a result that is no JSON is the handler's error
            outcome = {"verdict": "done", "result": result}
        except Exception as error:
            unwanted = cancelled.is_set() and job["lease"] not in late
            verdict = "cancel" if unwanted else "fail" if isinstance(error, NonRetryable) else "retry"
            outcome = {"verdict": verdict, "error": traceback.format_exc()}
        outcomes.put((job, outcome))

    def settle(batch):
        results = [{"id": job["id"], "lease": job["lease"], **outcome} for job, outcome in batch]
        for answer in call("/leases/settle", {"results": results})["results"] if results else []:
            if "error" in answer:
                print("not settled:", answer, file=sys.stderr, flush=True)

    def settling():
        while True:
            batch = [outcomes.get()]
            while not outcomes.empty():  # what has ended since the last call shares this one
                batch.append(outcomes.get())
            settle([(job, outcome) for job, outcome in batch if job["lease"] in running])
            for job, _ in batch:
                running.pop(job["lease"], None)
                late.discard(job["lease"])
                free.release()

    def renewing():
        while True:
            time.sleep(lease_seconds / 3)
            held = list(running.values())
            if not held:
                continue
            leases = [{"id": job["id"], "lease": job["lease"]} for job, _ in held]
            answers = call("/leases/renew", {"leases": leases, "extend": f"{int(lease_seconds * 1000)}ms"})["leases"]
            for (job, cancelled), answer in zip(held, answers):
                if answer.get("timedOut"):
                    late.add(job["lease"])
                if answer.get("cancelled") or answer.get("timedOut") or "error" in answer:
                    cancelled.set()
                if "error" in answer:  # lost: the job may run elsewhere by now, so there is nothing to settle
                    running.pop(job["lease"], None)

    def leasing():
        while True:
            free.acquire()
            slots = 1
            while free.acquire(blocking=False):
                slots += 1
            ask = {"types": list(handlers), "max": slots, "wait": "30s", "worker": f"python-{os.getpid()}"}
            jobs = call("/leases", {**ask, "lease": f"{int(lease_seconds * 1000)}ms"})["jobs"]
            if stopping.is_set():
                return settle([(job, {"verdict": "release"}) for job in jobs])
            for job in jobs:
                running[job["lease"]] = (job, threading.Event())
                threading.Thread(target=run, args=running[job["lease"]], daemon=True).start()
            for _ in range(slots - len(jobs)):
                free.release()

    for loop in (settling, renewing, leasing):
        threading.Thread(target=loop, daemon=True).start()
    stopping.wait()
    deadline = time.monotonic() + grace_seconds
    while running and time.monotonic() < deadline:
        time.sleep(0.02)
    unfinished = [running.pop(lease) for lease in list(running)]
    for _, cancelled in unfinished:
        cancelled.set()
    settle([(job, {"verdict": "release"}) for job, _ in unfinished])
