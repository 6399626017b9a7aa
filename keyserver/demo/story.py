"""What a demo shows, step by step: a table of promises, each kept by real processes or reported as broken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from keyserver.config import load_config
from keyserver.demo import forge, people
from keyserver.demo.liar import show_to_others
from keyserver.demo.processes import DemoFailed, wait_until
from keyserver.demo.stage import REALM, REPLICA, Stage, parse_json
from keyserver.quarantine import evidence_folder
from verifier.files import read_secret
from verifier.proof_encoding import decode_lookup_proof
from verifier.realm import fingerprint

ALICE, BOB, CAROL, DAVE, NOBODY = (
    f"{name}@example.test" for name in ("alice", "bob", "carol", "dave", "nobody")
)
VERIFIED, UNVERIFIED, ABSENT, NOT_RATIFIED, FORK = 0, 3, 4, 7, 8  # exit codes of the client
WRITERS = tuple(f"writer-{n}@example.test" for n in (1, 2, 3))
SIGNS_FRESH_MS = 1_000


@dataclass
class Story:
    """The state of a walk: where it plays, what it saved, what the terminal shows (`say`)."""

    stage: Stage
    say: Callable[[str], None]
    saved: dict[str, dict[str, object]] = field(default_factory=dict)
    first_epoch: int = 0

    def client(self, expect: int, *arguments: str) -> CompletedProcess[str]:
        """Run the client, show its lines, and insist on its exit code."""
        self.say(f"$ e2eks {' '.join(arguments)}")
        done = self.stage.e2eks(*arguments)
        for line in (done.stderr + done.stdout).splitlines():
            self.say(f"    {line}")
        if done.returncode != expect:
            raise DemoFailed(f"the client ended with status {done.returncode}, expected {expect}")
        return done

    def save(self, name: str, user: str, expect: int) -> None:
        """Record a proof file and what `e2eks verify` must say of it, at a time when it is fresh."""
        head = decode_lookup_proof((self.stage.proofs / f"{name}.bin").read_bytes()).head
        seen = max(r.timestamp_ms for r in head.ratifications)
        self.saved[name] = {"user": user, "expect_exit": expect, "at_ms": seen + SIGNS_FRESH_MS}

    def look_up(self, name: str, user: str, expect: int, *options: str) -> CompletedProcess[str]:
        """Look a user up and keep the proof as proofs/NAME.bin."""
        file = str(self.stage.proofs / f"{name}.bin")
        done = self.client(expect, "lookup", user, *options, "--save", file)
        self.save(name, user, expect)
        return done


def set_up(story: Story) -> None:
    story.stage.set_up()
    realm_file, pinned = str(story.stage.realm_file), fingerprint(story.stage.realm())
    story.client(VERIFIED, "context", "add", realm_file, "--fingerprint", pinned)
    story.client(VERIFIED, "context", "use", REALM)


def start(story: Story) -> None:
    story.stage.start_replicas()
    story.stage.start_verifiers()
    wait_until(story.stage.ratified, "the first epoch is not ratified by all verifiers")


def register(user: str) -> Callable[[Story], None]:
    """The step that registers a user with real SSH and age keys."""

    def step(story: Story) -> None:
        name = user.partition("@")[0]
        files = people.make_keys(story.stage.home / "keys" / name, user)
        keys = [part for app, file in files.items() for part in ("--key", f"{app}={file}")]
        story.client(VERIFIED, "register", user, *keys)

    return step


def look_up_all(story: Story) -> None:
    for name, user in (("alice", ALICE), ("bob", BOB), ("carol", CAROL)):
        story.look_up(name, user, VERIFIED)
    proof = decode_lookup_proof((story.stage.proofs / "alice.bin").read_bytes())
    story.first_epoch = proof.head.head.epoch


def kill(story: Story) -> None:
    story.say(f"kill -9 {REPLICA}")
    story.stage.processes.kill(REPLICA)
    story.stage.start_replica()
    story.client(VERIFIED, "lookup", CAROL)


def kill_leader(story: Story) -> None:
    """Everybody's registration must succeed, whichever replica it was on its way to."""
    stage = story.stage
    with ThreadPoolExecutor(len(WRITERS)) as pool:
        writing = [pool.submit(_write, stage, user) for user in WRITERS]
        wait(writing, return_when=FIRST_COMPLETED)
        leader = stage.wait_leader()
        story.say(f"kill -9 {leader}    # the leader, while {len(WRITERS)} people write")
        stage.processes.kill(leader)
        begin = time.monotonic()
        story.say(f"    {stage.wait_leader(other_than=leader)} leads {time.monotonic() - begin:.1f} s later")
    for user, written in zip(WRITERS, writing, strict=True):
        if problem := written.result():
            raise DemoFailed(f"a write of {user} was lost: {problem}")
        story.client(VERIFIED, "lookup", user)
    stage.start_replica(leader)


def _write(stage: Stage, user: str) -> str:
    """Register a user, then change the key; what the client said if that did not succeed."""
    for turn in ("register", "update"):
        file = people.make_keys(stage.home / "keys" / f"{user}-{turn}", user)["ssh"]
        done = stage.e2eks(turn, user, "--key", f"ssh={file}")
        if done.returncode:
            return f"{turn} ended with status {done.returncode}: {done.stderr.strip()}"
    return ""


def update(story: Story) -> None:
    files = people.make_keys(story.stage.home / "keys" / "alice-new", ALICE)
    story.client(VERIFIED, "update", ALICE, "--key", f"ssh={files['ssh']}")
    story.look_up("alice-updated", ALICE, VERIFIED)


def old_epoch(story: Story) -> None:
    done = story.look_up("alice-old-epoch", ALICE, VERIFIED, "--epoch", str(story.first_epoch), "-o", "json")
    if parse_json(done.stdout).get("epoch") != story.first_epoch:
        raise DemoFailed("the client showed another epoch than the old one asked for")


def with_impostor(story: Story, name: str, answer: Path | None, expect: int, user: str) -> None:
    """Look `user` up at a lying server that the same realm's TLS certificate vouches for."""
    realm_file = story.stage.start_impostor(answer)
    pinned = fingerprint(story.stage.realm())
    story.client(VERIFIED, "context", "add", str(realm_file), "--name", name, "--fingerprint", pinned)
    story.client(expect, "--context", name, "lookup", user)
    story.stage.processes.stop("impostor")


def tampered(story: Story) -> None:
    with_impostor(story, "altering", None, UNVERIFIED, ALICE)
    genuine = (story.stage.proofs / "alice-updated.bin").read_bytes()
    (story.stage.proofs / "tampered.bin").write_bytes(forge.tamper(genuine))
    story.save("tampered", ALICE, UNVERIFIED)


def absent(story: Story) -> None:
    story.look_up("absent", NOBODY, ABSENT)


def lone_liar(story: Story) -> None:
    """The last replica alone. A client that it lies to, all verifiers with it, misses a majority; replicas
    that it shows its head to keep it as evidence and go on.
    """
    stage, liar = story.stage, story.stage.replicas[-1]
    _lie(story, "one-signer", (liar,), NOT_RATIFIED)
    forged = decode_lookup_proof((stage.proofs / "one-signer.bin").read_bytes()).head.head
    story.say(f"{liar} shows its head of epoch {forged.epoch} to the other replicas")
    show_to_others(load_config(stage.config_of(liar)), forged.encoded)
    for name in stage.replicas[:-1]:
        kept = evidence_folder(load_config(stage.config_of(name)))
        wait_until(lambda: any(kept.glob("*.json")), f"{name} keeps no evidence")  # noqa: B023 - now
        story.say(f"    {name} keeps {next(kept.glob('*.json'))}")
    register(DAVE)(story)


def fork(story: Story) -> None:
    _lie(story, "fork", story.stage.replicas, FORK)


def _lie(story: Story, name: str, liars: Sequence[str], expect: int) -> None:
    """Let some replicas and all verifiers sign another head for an epoch that the client has seen."""
    stage = story.stage
    genuine = decode_lookup_proof((stage.proofs / "absent.bin").read_bytes())
    replicas = [read_secret(stage.folder_of(liar) / "head.key") for liar in liars]
    verifiers = [read_secret(stage.verifier(verifier) / "verifier.key") for verifier in stage.verifiers]
    (stage.proofs / f"{name}.bin").write_bytes(forge.fork(genuine, replicas, verifiers))
    with_impostor(story, name, stage.proofs / f"{name}.bin", expect, NOBODY)
    story.save(name, NOBODY, expect)


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    act: Callable[[Story], None]


_KILL = Step("kill", "The replica is killed and started again; nothing acknowledged is lost", kill)
_KILL_LEADER = Step(
    "kill-leader", "The leader is killed in the middle of writes; the others go on", kill_leader
)
_LONE_LIAR = Step(
    "one-signer",
    "One replica signs another head: clients and replicas refuse it, the realm goes on",
    lone_liar,
)
_BEGINNING = (
    Step("set-up", "A realm: keys and certificates for its replicas and verifiers", set_up),
    Step("start", "Their processes, on loopback, TLS everywhere", start),
    Step(
        "register-alice",
        "Alice publishes her SSH and age keys; the answer is a ratified proof",
        register(ALICE),
    ),
    Step("register-bob", "Bob too", register(BOB)),
    Step("register-carol", "Carol too", register(CAROL)),
    Step("lookup", "Anybody looks them up and verifies every answer", look_up_all),
)
_END = (
    Step("update", "Alice replaces her SSH key", update),
    Step("old-epoch", "The epoch before still proves her old one", old_epoch),
    Step("tampered", "A server that alters one bit of a key is refused", tampered),
    Step("absent", "That nobody has a key is proven, not claimed", absent),
)
_FORK = Step("fork", "All of them sign another history together: a client that remembers sees it", fork)


def steps(replicas: int) -> tuple[Step, ...]:
    """What is shown with so many replicas: one can be killed and comes back, of more the leader can."""
    if replicas == 1:
        return (*_BEGINNING, _KILL, *_END, _FORK)
    return (*_BEGINNING, _KILL_LEADER, *_END, _LONE_LIAR, _FORK)


def play(story: Story, told_to_end: Callable[[], bool] = lambda: False) -> list[dict[str, object]]:
    """Run the steps until one fails, or somebody tells; a row for each that ran. Raises nothing that a step
    raised.
    """
    rows: list[dict[str, object]] = []
    for number, step in enumerate(steps(len(story.stage.replicas)), 1):
        if told_to_end():
            story.say("\nEnded before the next step, as told.")
            break
        story.say(f"\n{number}. {step.title}")
        begin = time.monotonic()
        problem = ""
        try:
            step.act(story)
        except (DemoFailed, OSError) as error:
            problem = str(error)
            story.say(f"    FAILED: {problem}")
        row: dict[str, object] = {"name": step.name, "ok": not problem}
        row["seconds"] = round(time.monotonic() - begin, 3)
        rows.append({**row, "problem": problem} if problem else row)
        if problem:
            break
    return rows
