"""A real federation on this machine for the attacks: fedlorad, three `fedlora join` and a tiny model. Needs only Python.

FEDLORA_BUILD_DIR names the folder of the programs; the default is build/release.
"""
import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("FEDLORA_BUILD_DIR", os.path.join(ROOT, "build", "release"))
FEDLORA, FEDLORAD = os.path.join(BUILD, "fedlora"), os.path.join(BUILD, "fedlorad")
NAMES = ["ann", "bob", "cat"]
RANKS = {"ann": "2", "bob": "4", "cat": "8"}
PLAIN = ["fedit", "flora", "fed-sb", "ffa", "fedex", "fedsa", "fedsvd", "flexlora", "florist", "hetlora", "lora-fair", "rolora"]
MIXED = {"flora", "fed-sb", "ffa", "flexlora", "florist", "hetlora"}  # members of different ranks
ENV = dict(os.environ, OMP_NUM_THREADS="1")


class Wrong(Exception):
    """The coordinator did what it must not do."""


def blake(path):
    with open(path, "rb") as file:
        return hashlib.blake2b(file.read(), digest_size=32).hexdigest()


class Place:
    """Certificates, keys, a base model and rows, made once for all federations of a program."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="fedlora-attack-")
        tiny = [sys.executable, ROOT + "/tests/e2e/tiny.py"]
        subprocess.run(tiny + ["model", self.dir + "/base"], check=True)
        for i, name in enumerate(NAMES):
            rows = ["rows", f"{self.dir}/{name}.jsonl", "--seed", str(i + 1), "--rows", str(8 + 4 * i)]
            subprocess.run(tiny + rows, check=True)
        certs = [ROOT + "/deploy/make-certs.sh", self.dir + "/certs", "--federation", "test", "--admin", "ops"]
        subprocess.run(certs + NAMES, check=True, stdout=subprocess.DEVNULL)
        for key in ["ledger"] + NAMES:
            command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", f"{self.dir}/{key}.key"]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, umask=0o077)
        said = subprocess.run([FEDLORA, "inspect", self.dir + "/base", "--json"], capture_output=True, check=True)
        self.digest = json.loads(said.stdout)["digest"]

    def close(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def plan(kind, rounds):
    """Options of `run create` and of every `join` for a kind of run: a method, or client-dp or example-dp."""
    create = ["--rounds", str(rounds), "--steps", "2", "--batch", "2", "--seq", "32", "--lr", "1e-3", "--targets", "q,v,down",
              "--seed", "1", "--precision", "f32"]
    join = []
    if kind == "client-dp":
        create += ["--method", "fed-sb", "--rank", "2", "--weights", "uniform", "--evaluate-every", "0", "--deadline",
                   "400ms", "--privacy", "client", "--epsilon", "50", "--delta", "1e-2", "--clip-norm", "0.5",
                   "--sampling", "0.7", "--force-noise"]
    elif kind == "example-dp":
        create += ["--method", "ffa", "--rank", "2", "--weights", "uniform", "--evaluate-every", "0", "--privacy",
                   "example", "--epsilon", "50", "--delta", "1e-3", "--clip-norm", "0.5", "--sampling", "0.3"]
        join = ["--ledger", "{work}/{name}.ledger", "--ledger-key", "{place}/{name}.key"]
    elif kind == "fedit-adam":
        create += ["--method", "fedit", "--rank", "4", "--option", "server=fedadam", "--option", "server_lr=0.1"]
    else:
        create += ["--method", kind, "--rank", "8" if kind in MIXED else "4"]
        if kind in MIXED:
            join = ["--rank", "{rank}"]
    return create, join


class Federation:
    def __init__(self, place, name, kind, rounds):
        self.place, self.kind, self.rounds = place, kind, rounds
        self.dir = os.path.join(place.dir, name)
        self.store, self.log = self.dir + "/store", self.dir + "/fedlorad.log"
        os.makedirs(self.dir)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        certs = place.dir + "/certs"
        with open(self.dir + "/fedlorad.ini", "w") as file:
            file.write(f"[server]\nlisten = 127.0.0.1:{self.port}\nca = {certs}/ca.pem\ncert = {certs}/server.pem\n"
                       f"key = {certs}/server.key\n[store]\npath = {self.store}\n[federation]\nname = test\n"
                       f"members = {','.join(NAMES)}\n[privacy]\nledger_key = {place.dir}/ledger.key\n"
                       "[limits]\ncalls_per_second = 0\nretry_after = 200ms\n")
        self.create_options, self.join_options = plan(kind, rounds)
        self.process, self.joins = None, {}

    # ---- the coordinator

    def start(self, env=None, seconds=30):
        """Starts fedlorad. False: it has ended by itself."""
        at = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([FEDLORAD, "--config", self.dir + "/fedlorad.ini"], stdout=log, stderr=log,
                                            env={**ENV, **(env or {})})
        end = time.time() + seconds
        while time.time() < end:
            with open(self.log, "rb") as log:
                log.seek(at)
                if b"fedlorad.ready" in log.read():
                    return True
            if self.process.poll() is not None:
                self.process = None
                return False
            time.sleep(0.01)
        raise Wrong(f"fedlorad is not ready after {seconds} s")

    def restart(self):
        if not self.start():
            raise Wrong("fedlorad does not start again: " + self.tail())

    def begin(self):
        """The coordinator, the run and all members."""
        if not self.start():
            raise Wrong("fedlorad does not start: " + self.tail())
        failed = self.create()
        if failed:
            raise Wrong("run create: " + failed)
        for name in NAMES:
            self.join(name)

    def stop(self, signal_number=signal.SIGKILL):
        if not self.process:
            return None
        self.process.send_signal(signal_number)
        status = self.process.wait(60)
        self.process = None
        return status

    def lives(self):
        return self.process is not None and self.process.poll() is None

    # ---- the others

    def connection(self, name):
        certs = self.place.dir + "/certs"
        return ["--server", f"127.0.0.1:{self.port}", "--ca", certs + "/ca.pem", "--cert", f"{certs}/{name}.pem",
                "--key", f"{certs}/{name}.key"]

    def admin(self, *arguments):
        return subprocess.run([FEDLORA, "run", *arguments, *self.connection("ops")], capture_output=True, timeout=90, env=ENV)

    def create(self):
        done = self.admin("create", "r", "--members", ",".join(NAMES), "--base-digest", self.place.digest, *self.create_options)
        if done.returncode and b"exists already" not in done.stderr:
            return done.stderr.decode()
        return None

    def join(self, name):
        values = {"work": self.dir, "name": name, "place": self.place.dir, "rank": RANKS[name]}
        more = [option.format(**values) for option in self.join_options]
        with open(f"{self.dir}/{name}.log", "ab") as log:
            self.joins[name] = subprocess.Popen(
                [FEDLORA, "join", "--run", "r", *self.connection(name), "--base", self.place.dir + "/base", "--data",
                 f"{self.place.dir}/{name}.jsonl", "--work", f"{self.dir}/work-{name}", "--threads", "1",
                 "--retry-for", "5m", *more], stdout=log, stderr=log, env=ENV)

    def joined(self):
        """True when every member has ended well."""
        for name, process in self.joins.items():
            status = process.poll()
            if status is None:
                return False
            if status:
                raise Wrong(f"{name} ended with status {status}: {self.tail(name)}")
        return True

    def tail(self, name="fedlorad", size=300):
        with open(f"{self.dir}/{name}.log", "rb") as file:
            return file.read()[-size:].decode(errors="replace")

    def wait(self, seconds, tick=None):
        """Until all members have ended; calls tick() meanwhile."""
        end = time.time() + seconds
        while not self.joined():
            if time.time() > end:
                raise Wrong(f"not finished after {seconds} s: {self.tail()}")
            if tick:
                tick()
            else:
                time.sleep(0.02)

    def status(self):
        done = self.admin("status", "r", "--json")
        if done.returncode:
            raise Wrong("run status: " + done.stderr.decode())
        return json.loads(done.stdout)

    # ---- the end

    def check(self):
        """The digest of the last state, after a look at everything that the run left."""
        log = open(self.log, "rb").read().decode(errors="replace")
        for bad in ("Sanitizer", "runtime error", "REQUIRE", "assertion"):
            if bad in log:
                raise Wrong(f"the log has {bad}: {log[log.index(bad) - 100:][:400]}")
        data = sqlite3.connect(f"file:{self.store}/fedlora.db?mode=ro", uri=True)
        if data.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            raise Wrong("the database is damaged")
        published, state = data.execute("SELECT published, lower(hex(state)) FROM runs WHERE name='r'").fetchone()
        data.close()
        if published != self.rounds:
            raise Wrong(f"{published} of {self.rounds} rounds are published")
        for blob in os.listdir(self.store + "/blobs"):
            if blake(f"{self.store}/blobs/{blob}") != blob:
                raise Wrong(f"blob {blob} has other bytes")
        self.check_ledgers()
        return state

    def check_ledgers(self):
        ledgers = {"client-dp": [self.store + "/ledgers/r.jsonl"],
                   "example-dp": [f"{self.dir}/{name}.ledger" for name in NAMES]}.get(self.kind, [])
        for ledger in ledgers:
            verified = subprocess.run([FEDLORA, "budget", "verify", ledger], capture_output=True)
            releases = sum(json.loads(line)["kind"] == "release" for line in open(ledger))
            if verified.returncode or releases != self.rounds:
                raise Wrong(f"{ledger}: {releases} releases for {self.rounds} rounds; {verified.stderr.decode()}")

    def close(self):
        for process in self.joins.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)


def undisturbed(place, kind, rounds):
    """The last state without an attack."""
    federation = Federation(place, kind + "-plain", kind, rounds)
    try:
        federation.begin()
        federation.wait(600)
        federation.stop(signal.SIGTERM)
        return federation.check()
    finally:
        federation.close()


def report(name, tried, held, what):
    """The line that tests/attack/run.sh makes its table of."""
    print(f"RESULT {name} {tried} {held} {what}", flush=True)
    sys.exit(0 if tried == held else 1)
