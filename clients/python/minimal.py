"""The shortest correct worker, to be read before you write one. work(url, key, {"send-mail": lambda job, told: …}).
To copy there is worker.py: it bounds a stop, has verdicts and effects, and tells a job why its answer was refused."""
import http.client, json, os, signal, sys, threading, time, urllib.request as web

def work(url, key, handlers, concurrency=10, lease_ms=4_500):
    runs, ended, turn, stopping, renew_at = {}, [], threading.Lock(), threading.Event(), 0
    passing = ("store.busy", "store.failed", "unavailable")  # the same again may work
    def call(path, body):  # a server that is away or busy is asked again; a refusal ends the worker
        request = web.Request(f"{url}/v1/leases{path}", json.dumps(body).encode(), {"Authorization": f"Bearer {key}"})
        while True:
            try:
                [entries] = json.load(web.urlopen(request, timeout=60)).values()
                if not any(entry.get("error", {}).get("code") in passing for entry in entries):
                    return entries
            except (OSError, http.client.HTTPException) as error:
                if 400 <= getattr(error, "code", 503) < 500 and error.code != 429:
                    print(path, error.read().decode(), file=sys.stderr, flush=True)
                    os._exit(1)
            time.sleep(0.5)
    def run(handler, job, held, told):
        try:
            ended.append(dict(held, verdict="done", result=json.loads(json.dumps(handler(job, told), allow_nan=False))))
        except BaseException as error:
            ended.append(dict(held, verdict="retry", error=repr(error)[:8_000]))
        with turn:  # settle calls follow each other, and each takes along all that has ended since the one before
            while batch := [ended.pop() for _ in range(len(ended))]:
                call("/settle", {"results": batch})
        del runs[told]
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    while runs or not stopping.is_set():
        ask = {"types": list(handlers), "max": concurrency - len(runs), "wait": lease_ms // 6, "lease": lease_ms}
        for job in call("", ask) if ask["max"] > 0 and not stopping.is_set() else []:
            runs[(told := threading.Event())] = {"id": job["id"], "lease": job["lease"]}
            threading.Thread(target=run, args=(handlers[job["type"]], job, runs[told], told)).start()
        if (held := dict(runs)) and time.monotonic() >= renew_at:
            renew_at = time.monotonic() + lease_ms / 3_000
            for told, answer in zip(held, call("/renew", {"leases": list(held.values()), "extend": lease_ms})):
                if answer.get("cancelled") or answer.get("timedOut") or answer.get("error"):
                    told.set()
        time.sleep(0.02)  # those that end meanwhile share the next call for jobs
