#!/usr/bin/env python3
"""A client made by strangers: grpcio and code that protoc made from proto/*.proto take part in a run
beside `fedlora join`, from Hello to the last state. Shows that the protocol is plain gRPC.

Also: grpc.health.v1 answers stock probes; an update with a NaN, one that is cut short, and one of a
wrong round are refused with a reason and leave the run intact.
"""

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time

import oracle

grpc, _, numpy = oracle.need("grpc", "grpc_tools", "numpy")
FEDLORAD = os.path.join(oracle.PROGRAMS, "fedlorad")
if not os.path.exists(FEDLORAD):
    oracle.skip(f"{FEDLORAD} is not built")
MODULE = "base_model.model.{}.lora_{}.weight"
CHUNK = 100_000


def generate(folder):
    """The protocol's Python code, made here and now."""
    from grpc_tools import protoc

    protos = os.path.join(oracle.ROOT, "proto")
    for name in ("fedlora.proto", "health.proto"):
        flags = ["protoc", f"-I{protos}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        if protoc.main([*flags, name]) != 0:
            sys.exit(f"FAILED: protoc {name}")
    sys.path.insert(0, folder)
    import fedlora_pb2
    import fedlora_pb2_grpc
    import health_pb2
    import health_pb2_grpc

    return fedlora_pb2, fedlora_pb2_grpc, health_pb2, health_pb2_grpc


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def channel(address, certs, name):
    credentials = grpc.ssl_channel_credentials(
        read(certs, "ca.pem"), read(certs, name + ".key"), read(certs, name + ".pem")
    )
    return grpc.secure_channel(address, credentials)


# ---- safetensors by hand


def load(data):
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    meta, tensors = header.pop("__metadata__", {}), {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        values = numpy.frombuffer(data[8 + size + begin : 8 + size + end], dtype="<f4")
        tensors[name] = values.reshape(about["shape"])
    return tensors, meta


def dump(tensors, meta):
    header, body = {"__metadata__": meta}, b""
    for name in sorted(tensors):
        packed = numpy.ascontiguousarray(tensors[name], dtype="<f4").tobytes()
        offsets = [len(body), len(body) + len(packed)]
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": offsets}
        body += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def blake(data):
    return hashlib.blake2b(data, digest_size=32).digest()


# ---- the stranger


class Stranger:
    def __init__(self, pb, stub, run, digest):
        self.pb, self.stub, self.run, self.digest, self.refusals = pb, stub, run, digest, 0

    def hello(self, **how):
        request = self.pb.HelloRequest(
            software="stranger 1", protocol=1, run=self.run, base_digest=self.digest, rank=3, examples=5
        )
        for i in range(2):
            for name, d_out, d_in in (("q_proj", 32, 32), ("v_proj", 16, 32)):
                path = f"model.layers.{i}.self_attn.{name}"
                request.modules.add(name=path, d_out=d_out, d_in=d_in)
        return self.stub.Hello(request, timeout=10, **how)

    def fetch(self, digest, size):
        """In two parts, to see that any offset will do."""
        data = b""
        for offset in (0, size // 3):
            data = data[:offset]
            request = self.pb.FetchRequest(run=self.run, digest=digest, offset=offset)
            for chunk in self.stub.Fetch(request, timeout=10):
                assert chunk.offset == len(data), (chunk.offset, len(data))
                data += chunk.data
        assert len(data) == size and blake(data) == digest
        return data

    def update(self, task, state):
        """Random small factors of the right shapes."""
        meta = load(state)[1]
        rng, tensors = numpy.random.default_rng(task.round), {}
        for name, (d_out, d_in) in json.loads(meta["fedlora.modules"]).items():
            tensors[MODULE.format(name, "A")] = rng.normal(size=(task.rank, d_in)) * 0.05
            tensors[MODULE.format(name, "B")] = rng.normal(size=(d_out, task.rank)) * 0.05
        about = {
            "fedlora.kind": "update",
            "fedlora.run": task.run,
            "fedlora.round": str(task.round),
            "fedlora.method": meta["fedlora.method"],
            "fedlora.base": meta["fedlora.base"],
            "fedlora.rank": str(task.rank),
            "fedlora.alpha": repr(task.alpha),
        }
        return tensors, about

    def submit(self, task, data, claimed=None):
        header = self.pb.SubmitHeader(
            run=self.run, round=task.round, digest=claimed or blake(data), size=len(data), examples=5
        )
        header.offset = self.stub.SubmitOffset(header, timeout=10).received

        def parts():
            yield self.pb.SubmitPart(header=header)
            for at in range(header.offset, len(data), CHUNK):
                yield self.pb.SubmitPart(data=data[at : at + CHUNK])

        return self.stub.Submit(parts(), timeout=10)

    def refused(self, what, code, call):
        try:
            call()
        except grpc.RpcError as error:
            assert error.code() == code, f"{what}: {error.code()} {error.details()}"
            assert error.details(), what
            self.refusals += 1
            print(f"ok: {what} is refused: {error.details()}")
            return
        sys.exit(f"FAILED: {what} was taken")

    def try_bad(self, task, tensors, about):
        bad = grpc.StatusCode.INVALID_ARGUMENT
        name = sorted(tensors)[0]
        spoiled = {**tensors, name: tensors[name] * numpy.nan}
        self.refused("NaN", bad, lambda: self.submit(task, dump(spoiled, about)))
        fewer = {k: v for k, v in tensors.items() if k != name}
        self.refused("a missing tensor", bad, lambda: self.submit(task, dump(fewer, about)))
        data = dump(tensors, about)
        self.refused("half a file", bad, lambda: self.submit(task, data[: len(data) // 2]))
        other = blake(b"another")
        self.refused("another digest", bad, lambda: self.submit(task, data, claimed=other))

    def take_part(self):
        rounds, deadline = 0, time.time() + 60
        while time.time() < deadline:
            task = self.stub.NextTask(self.pb.NextTaskRequest(run=self.run, wait_ms=2000), timeout=10)
            kind = task.WhichOneof("kind")
            if kind == "finished":
                return rounds, task.finished
            if kind == "wait":
                time.sleep(task.wait.retry_ms / 1000)
                continue
            task = task.train
            tensors, about = self.update(task, self.fetch(task.state_digest, task.state_size))
            if rounds == 0:
                self.try_bad(task, tensors, about)
            data = dump(tensors, about)
            assert self.submit(task, data).durable
            assert self.submit(task, data).durable, "sending it again is no harm"
            rounds += 1
        sys.exit("FAILED: the run did not finish within a minute")


# ---- the test


def write_config(work, port):
    lines = ["[server]", f"listen = 127.0.0.1:{port}", f"ca = {work}/certs/ca.pem"]
    lines += [f"cert = {work}/certs/server.pem", f"key = {work}/certs/server.key"]
    lines += ["[store]", f"path = {work}/store", "[federation]", "name = fed", "members = native,stranger"]
    with open(os.path.join(work, "fedlorad.ini"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def prepare(work):
    tiny = os.path.join(oracle.ROOT, "tests", "e2e", "tiny.py")
    subprocess.run([sys.executable, tiny, "model", work + "/base"], check=True)
    subprocess.run([sys.executable, tiny, "rows", work + "/rows.jsonl", "--rows", "8"], check=True)
    make_certs = os.path.join(oracle.ROOT, "deploy", "make-certs.sh")
    names = ["--federation", "fed", "--admin", "ops", "native", "stranger"]
    subprocess.run([make_certs, work + "/certs", *names], check=True, stdout=subprocess.DEVNULL)
    os.makedirs(work + "/store")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write_config(work, port)
    return f"127.0.0.1:{port}"


def as_member(work, address, name):
    certs = work + "/certs"
    files = ["--ca", certs + "/ca.pem", "--cert", f"{certs}/{name}.pem", "--key", f"{certs}/{name}.key"]
    return ["--server", address, *files]


def check_health(pb, stub):
    for service in ("", "fedlora.v1.Federation"):
        answer = stub.Check(pb.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == pb.HealthCheckResponse.SERVING
    try:
        stub.Check(pb.HealthCheckRequest(service="nothing"), timeout=5)
        sys.exit("FAILED: a service that is not there was found healthy")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(pb.HealthCheckRequest(), timeout=30)
    assert next(watch).status == pb.HealthCheckResponse.SERVING
    print("ok: grpc.health.v1 Check and Watch")
    return watch


def federate(work, address, modules, processes):
    pb, pb_grpc, health_pb, health_grpc = modules
    line = channel(address, work + "/certs", "stranger")
    grpc.channel_ready_future(line).result(timeout=10)
    watch = check_health(health_pb, health_grpc.HealthStub(line))
    made = oracle.fedlora(
        *["run", "create", "r", "--method", "flora", "--rounds", "2", "--members", "native,stranger"],
        *["--base", work + "/base", "--targets", "q,v", "--steps", "2", "--seq", "32", "--json"],
        *as_member(work, address, "ops"),
    )
    digest = bytes.fromhex(json.loads(made)["config"]["base_digest"])
    join = [os.path.join(oracle.PROGRAMS, "fedlora"), "join", "--base", work + "/base", "--rank", "2"]
    join += ["--data", work + "/rows.jsonl", "--threads", "1", "--work", work + "/native"]
    join += as_member(work, address, "native")
    processes.append(subprocess.Popen(join, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    stranger = Stranger(pb, pb_grpc.FederationStub(line), "r", digest)
    stranger.refused(
        "a compressed message",
        grpc.StatusCode.INVALID_ARGUMENT,
        lambda: stranger.hello(compression=grpc.Compression.Gzip),
    )
    hello = stranger.hello()
    assert (hello.run, hello.member, hello.method, hello.rank) == ("r", "stranger", "flora", 3), hello
    rounds, finished = stranger.take_part()
    assert rounds == 2 and finished.outcome == "finished", (rounds, finished)
    tensors, meta = load(stranger.fetch(finished.state_digest, finished.state_size))
    assert meta["fedlora.kind"] == "state" and any("carry_A" in name for name in tensors)
    assert processes[-1].wait(timeout=30) == 0, "fedlora join failed"
    print(f"ok: {rounds} rounds beside fedlora join; last state of {finished.state_size} bytes")
    return watch


def main():
    with tempfile.TemporaryDirectory(prefix="fedlora-stranger-") as work:
        modules = generate(work)
        address = prepare(work)
        log = open(work + "/fedlorad.log", "wb")  # pylint: disable=consider-using-with
        command = [FEDLORAD, "--config", work + "/fedlorad.ini"]
        processes = [subprocess.Popen(command, stderr=log)]
        try:
            watch = federate(work, address, modules, processes)
            processes[0].terminate()
            assert next(watch).status == modules[2].HealthCheckResponse.NOT_SERVING
            assert processes[0].wait(timeout=15) == 0, "fedlorad did not stop cleanly"
            print("ok: a watcher is told that the coordinator stops")
        except BaseException:
            sys.stderr.write(read(work, "fedlorad.log").decode()[-3000:])
            raise
        finally:
            for process in processes:
                process.kill()
            log.close()


if __name__ == "__main__":
    main()
