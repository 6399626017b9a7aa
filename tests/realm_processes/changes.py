"""A cluster that operators change while it runs, with their own commands: keys, replicas, certificates."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import astuple
from datetime import UTC, datetime
from functools import partial

from keyserver import exits
from keyserver.demo.processes import free_port, wait_until
from keyserver.demo.stage import HOST, listening
from keyserver.installation import certificates
from keyserver.installation.plan import Ports
from keyserver.installation.setup import PEERS_CA, REALM_CA
from realm_processes.cluster import ClusterProcesses
from realm_processes.crashes import Trial, see_register
from verifier.crypto.hashing import key_id
from verifier.signonce import read_rows

STRETCH = 2_000  # log entries; a replica that joins applies many times as many before its time is over


def roll(trial: Trial, realm: ClusterProcesses, spared: str = "", *, joining: str = "") -> None:
    """Restart the replicas that run but one, one after the other, the leader last; each is waited for.

    Who leads before the leader is restarted is one that knows whoever is `joining`, which gets the log.
    """
    leader = realm.wait_leader()
    running = [name for name in realm.others(spared) if name in realm.processes.running]
    for name in sorted(running, key=lambda name: name == leader):
        if name == leader and joining:
            hand_over(realm, leader)
            wait_level(realm, joining, leader)
        restart(trial, realm, name)


def restart(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """As for an upgrade."""
    assert realm.processes.stop(name) == 0
    see_register(realm, name, trial.seen)
    realm.spawn(name)
    realm.wait_ready(name)


def hand_over(realm: ClusterProcesses, name: str) -> None:
    """Let another replica lead. It is refused while none has all of the log at once: asked again."""

    def is_done() -> bool:
        done = realm.run("keyserver", "replicas", "hand-over", "-c", str(realm.config_of(name)), "-o", "json")
        assert done.returncode in (0, exits.REFUSED), done.stderr
        return done.returncode == 0 and json.loads(done.stdout)["leader"] != name

    wait_until(is_done, f"another replica than {name} to lead")


def wait_level(realm: ClusterProcesses, name: str, other: str) -> None:
    """Wait until a replica has what another one has now: as long as that takes, if only it gets on."""
    wanted = realm.standing(other)["applied_index"]
    for level in (*range(STRETCH, wanted, STRETCH), wanted):
        wait_until(partial(_has, realm, name, level), f"{name} to have {level} of {wanted} log entries")


def _has(realm: ClusterProcesses, name: str, entries: int) -> bool:
    return bool(realm.standing(name).get("applied_index", 0) >= entries)


def put_key_in_place(
    trial: Trial, realm: ClusterProcesses, old: str, old_key: bytes, new: str, public_key: str
) -> None:
    """Let a majority without `old` approve that the key of `new` takes the place of `old_key` (its id); wait
    until it signs.
    """
    trial.seen.know_replica(key_id(bytes.fromhex(public_key)), bytes.fromhex(public_key))
    asked, *others = realm.others(old)
    config, file = realm.config_of(asked), realm.folder / f"change-to-{public_key[:8]}.json"
    realm.ok("keyserver", "replicas", "replace", old_key.hex(), public_key, "-c", config, "--file", file)
    for approver in (asked, others[0], new):
        realm.ok("keyserver", "replicas", "approve", file, "-c", realm.config_of(approver))
    accepted = realm.ok("keyserver", "replicas", "submit", file, "-c", config)
    wait_until(lambda: realm.newest_signed(new) > accepted["epoch"], f"{new} to sign under its new key")


def roll_key(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """Give a replica a new head key."""
    assert realm.processes.stop(name) == 0
    see_register(realm, name, trial.seen)
    old_key = realm.key_id_of(name)
    made = realm.ok("keyserver", "keys", "rekey", "--retire-healthy-key", "-c", realm.config_of(name))
    realm.spawn(name)
    wait_until(lambda: bool(realm.standing(name)), f"{name} with its new key")
    put_key_in_place(trial, realm, name, old_key, name, made["public_key"])


def roll_verifier_key(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """Give a verifier a new key; without it the realm needs a majority of verifiers."""
    folder = realm.verifier(name)
    assert realm.processes.stop(name) == 0
    see_register(realm, name, trial.seen)
    done = realm.run("verifier.daemon", "rekey", "-c", str(folder / "verifier.toml"))
    assert done.returncode == 0, done.stderr
    floor, _ = read_rows(realm.register_of(name), key_id=realm.key_id_of(name))
    realm.rekeyed = {**realm.rekeyed, name: floor + 1}
    trial.seen.know_verifier(realm.key_id_of(name), realm.key_of(name).public_key)
    configs = [word for replica in realm.replicas for word in ("-c", realm.config_of(replica))]
    realm.ok("keyserver", "realm", "add-verifier", "--replace", name, folder / "verifier-info.json", *configs)
    roll(trial, realm)
    for verifier in (name, *(other for other in realm.verifiers if other != name)):
        shutil.copyfile(realm.realm_file, realm.verifier(verifier) / "realm.json")
        restart_verifier(trial, realm, verifier)


def restart_verifier(trial: Trial, realm: ClusterProcesses, name: str) -> None:
    """Start it, anew if it runs; wait until it has ratified what is there."""
    if name in realm.processes.running:
        assert realm.processes.stop(name) == 0
    realm.start_verifier(name)
    newest = trial.seen.newest
    wait_until(lambda: realm.newest_signed(name) >= newest, f"{name} to ratify {newest}")


def replace_replica(trial: Trial, realm: ClusterProcesses, old: str) -> None:
    """Put a new replica, with name, folder and key that never were, in the place of one that runs."""
    new, public_key = new_replica(realm)
    realm.spawn(new)  # BEFORE the others count it: they need it for a majority while one of them restarts
    roll(trial, realm, spared=new, joining=new)
    tell_verifiers(trial, realm)
    put_key_in_place(trial, realm, old, realm.key_id_of(old), new, public_key)
    for name in realm.others(old):
        succeed(realm, "drop", old, "-c", realm.config_of(name))
    roll(trial, realm, spared=old)  # which is part of the majority of who does not know yet that it left
    assert realm.processes.stop(old) == 0
    bid_farewell(trial, realm, old)


def replace_dead(trial: Trial, realm: ClusterProcesses, old: str) -> None:
    """The same for one that is dead and never comes back: each of the two that are left restarts once, and
    the second not before the new one does what the dead one did.

    The new one votes without having seen what the dead one had. So the two must have all of it BEFORE: they
    have when they have decided something without it.
    """
    trial.load.wait_issued_from_now()
    new, public_key = new_replica(realm)
    leader = realm.wait_leader()
    (follower,) = realm.others(old, new, leader)
    for name in realm.others(old):
        succeed(realm, "drop", old, "-c", realm.config_of(name))
    realm.spawn(new)
    wait_level(realm, follower, leader)
    restart(trial, realm, follower)
    if realm.wait_leader() == leader:
        hand_over(realm, leader)
    wait_level(realm, new, leader)
    put_key_in_place(trial, realm, old, realm.key_id_of(old), new, public_key)
    restart(trial, realm, leader)
    bid_farewell(trial, realm, old)


def bid_farewell(trial: Trial, realm: ClusterProcesses, old: str) -> None:
    see_register(realm, old, trial.seen)
    realm.replicas = realm.others(old)
    tell_verifiers(trial, realm)


def new_replica(realm: ClusterProcesses) -> tuple[str, str]:
    """Make the folder of a replica and name it to the others, which will know with their restart; its name
    and its public key.
    """
    new = f"r{max(int(name[1:]) for name in realm.ports_of) + 1}"
    ports = realm.ports_of[new] = free_ports()
    made = realm.ok(
        "keyserver", "replicas", "new", f"{new}={HOST}", "--ca", realm.folder / "ca",
        "--port-base", ports.public, "-c", realm.config_of(realm.wait_leader()),
    )  # fmt: skip
    places = ("--peers", made["peers"], "--replication", made["replication"])
    for name in realm.replicas:
        succeed(realm, "enlist", new, *places, "-c", realm.config_of(name))
    realm.replicas = (*realm.replicas, new)
    return new, made["public_key"]


def succeed(realm: ClusterProcesses, *arguments: object) -> None:
    done = realm.run("keyserver", "replicas", *map(str, arguments))
    assert done.returncode == 0, done.stderr


def tell_verifiers(trial: Trial, realm: ClusterProcesses) -> None:
    """Let the verifiers follow the replicas of today, one after the other."""
    for name in realm.verifiers:
        config = realm.verifier(name) / "verifier.toml"
        text = config.read_text()
        for key in ("verification", "push"):
            places = ", ".join(f'"{HOST}:{getattr(realm.ports_of[r], key)}"' for r in realm.replicas)
            text = re.sub(rf"^{key} = \[.*\]", f"{key} = [{places}]", text, flags=re.MULTILINE)
        config.write_text(text)
        restart_verifier(trial, realm, name)


def free_ports() -> Ports:
    """Of a replica whose ports follow each other."""
    while True:
        ports = Ports.from_base(free_port())
        if not any(map(listening, astuple(ports))):
            return ports


def renew_certificates(realm: ClusterProcesses, name: str) -> None:
    """Give a running replica a new pair for its clients and another for its links."""
    folder, ca, now = realm.folder_of(name), realm.folder / "ca", datetime.now(UTC)
    authorities = [
        certificates.load_authority((ca / f"{kind}.pem").read_bytes(), (ca / f"{kind}.key").read_bytes())
        for kind in (REALM_CA, PEERS_CA)
    ]
    made = {
        "tls": certificates.issue_replica(authorities[0], name, [HOST, "localhost"], now),
        "tls/peer": certificates.issue_peer(authorities[1], name, now),
    }
    for file, pair in made.items():
        (folder / f"{file}.pem").write_bytes(pair.certificate_pem())
        (folder / f"{file}.key").write_bytes(pair.key_pem())
    before = realm.log_of(name).count("certificates renewed")
    realm.processes.running[name].send_signal(signal.SIGHUP)
    wait_until(lambda: realm.log_of(name).count("certificates renewed") > before, f"{name} to renew")
