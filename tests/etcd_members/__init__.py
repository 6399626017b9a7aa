"""Members of etcd on this machine: real processes of the distribution's etcd, mutual TLS everywhere."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clusters.certificates import PeersAuthority
from e2eks.etcd import api_pb2 as api

from keyserver.demo.processes import free_port, wait_until
from replication.etcd.client import EtcdClient, EtcdError, Pem
from replication.types import PeerTls

HOST = "localhost"  # what the members' certificates name
STOPS_WITHIN_S = 30
PATIENT_S = 60.0  # a disk may stand still for seconds: replicas repeat their calls then, a test waits


class PatientClient(EtcdClient):
    """For a test's own reading and writing, which nobody repeats."""

    def txn(self, request: api.TxnRequest, timeout_s: float = PATIENT_S) -> api.TxnResponse:
        return super().txn(request, timeout_s)

    def range(self, request: api.RangeRequest, timeout_s: float = PATIENT_S) -> api.RangeResponse:
        return super().range(request, timeout_s)


class EtcdMembers:
    """A cluster of etcd members `e1`, `e2` …; each may be killed and started again on its own files."""

    def __init__(self, folder: Path, count: int, *flags: str) -> None:
        """`flags` are given to each member."""
        self._folder = folder
        self._flags = flags
        self.names = tuple(f"e{number}" for number in range(1, count + 1))
        self.ports = {name: free_port() for name in self.names}
        self._peers = {name: free_port() for name in self.names}
        self._authority = PeersAuthority(folder / "tls")
        self._own = self._authority.member(HOST)
        self.tls = self._authority.member("replica")
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def endpoints(self, first: str | None = None) -> list[str]:
        """The addresses of all, `first` before the others."""
        names = sorted(self.names, key=lambda name: name != first)
        return [f"https://{HOST}:{self.ports[name]}" for name in names]

    def stranger(self) -> PeerTls:
        """Files with a certificate of another authority, which believe this one."""
        other = PeersAuthority(self._folder / "stranger").member("replica")
        return PeerTls(other.certificate, other.key, self._authority.path)

    def start(self, *names: str) -> None:
        """Start members, all of them if none is named; return when they answer with a leader."""
        for name in names or self.names:
            if name not in self._running:
                with (self._folder / f"{name}.out").open("ab") as out:
                    self._running[name] = subprocess.Popen(self._command(name), stdout=out, stderr=out)
        for name in names or self.names:
            if 2 * len(self._running) > len(self.names):
                wait_until(lambda name=name: self._serves(name), f"{name} of etcd to answer")

    def kill(self, name: str) -> None:
        """End a member without warning."""
        process = self._running.pop(name, None)
        if process is not None:
            process.kill()
            process.wait(STOPS_WITHIN_S)

    def stop_all(self) -> None:
        """End all. Idempotent."""
        for name in list(self._running):
            self.kill(name)

    @contextmanager
    def running(self) -> Iterator[EtcdMembers]:
        """All of them started; whatever happens, ended."""
        try:
            self.start()
            yield self
        finally:
            self.stop_all()

    def keep_copy(self, name: str, copy: Path) -> None:
        """End a member and copy its data."""
        self.kill(name)
        shutil.copytree(self._folder / name, copy)

    def put_back(self, name: str, copy: Path) -> None:
        """End a member and put an older copy in the place of its data."""
        self.kill(name)
        shutil.rmtree(self._folder / name)
        shutil.move(copy, self._folder / name)

    def pause(self, name: str, signal: int) -> None:
        """Send SIGSTOP or SIGCONT to a member."""
        self._running[name].send_signal(signal)

    @contextmanager
    def client(self, first: str | None = None) -> Iterator[EtcdClient]:
        """A client that is not a replica's."""
        client = PatientClient(self.endpoints(first), Pem.read(self.tls))
        try:
            yield client
        finally:
            client.close()

    def etcdctl(self, *arguments: str) -> None:
        """Run the operators' own tool against all members."""
        tls = self.tls
        subprocess.run(
            [
                "etcdctl",
                f"--endpoints={','.join(self.endpoints())}",
                f"--cacert={tls.authority}",
                f"--cert={tls.certificate}",
                f"--key={tls.key}",
                *arguments,
            ],
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
            timeout=60,
        )

    def _serves(self, name: str) -> bool:
        assert self._running[name].poll() is None, (self._folder / f"{name}.out").read_text()[-2000:]
        client = EtcdClient(self.endpoints(name)[:1], Pem.read(self.tls))
        try:
            return bool(client.txn(api.TxnRequest()).header.cluster_id)
        except EtcdError:
            return False
        finally:
            client.close()

    def _command(self, name: str) -> Sequence[str]:
        own, peers = self._own, self._peers
        files = f"{own.certificate} {own.key} {own.authority}".split()
        return [
            "etcd",
            f"--name={name}",
            f"--data-dir={self._folder / name}",
            f"--listen-client-urls=https://127.0.0.1:{self.ports[name]}",
            f"--advertise-client-urls=https://{HOST}:{self.ports[name]}",
            f"--listen-peer-urls=https://127.0.0.1:{peers[name]}",
            f"--initial-advertise-peer-urls=https://{HOST}:{peers[name]}",
            "--initial-cluster=" + ",".join(f"{each}=https://{HOST}:{peers[each]}" for each in self.names),
            "--client-cert-auth",
            f"--cert-file={files[0]}",
            f"--key-file={files[1]}",
            f"--trusted-ca-file={files[2]}",
            "--peer-client-cert-auth",
            f"--peer-cert-file={files[0]}",
            f"--peer-key-file={files[1]}",
            f"--peer-trusted-ca-file={files[2]}",
            "--logger=zap",
            "--log-level=warn",
            *self._flags,
        ]
