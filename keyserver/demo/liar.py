"""A replica that has another history than its log: it signs another head, and shows it to the other replicas.

Key and certificate are genuine; what it shows is what each of them must refuse to follow.
"""

from __future__ import annotations

import trio
from e2eks.v1 import peers_pb2

from keyserver.config import Config
from keyserver.peer_certificates import read_peer_files
from keyserver.peers.lines import lines_to
from keyserver.signer import composed_message
from verifier import encoding, epoch
from verifier.crypto.hashing import key_id
from verifier.crypto.signatures import SigningKey
from verifier.files import read_secret

ANSWER_S = 20.0


def show_to_others(liar: Config, head: bytes) -> None:
    """Sign the head and show it to every other member. Raises Unreached, Refused, ConfigError."""
    assert liar.cluster is not None
    key, value = SigningKey(read_secret(liar.head_key)), encoding.decode_head(head)
    shown = peers_pb2.ShownHead(
        head=head,
        key_id=key_id(key.public_key),
        composed=key.sign(composed_message(liar.realm.hash, value.epoch, value.hash)),
        signature=key.sign(epoch.replica_message(head, value.issue_time_ms)),
    )
    request = peers_pb2.ShowHeadRequest(shown=shown).SerializeToString(deterministic=True)
    members = liar.cluster.members.items()
    others = {name: member.peers for name, member in members if name != liar.replica_name}
    lines = lines_to(others, read_peer_files(liar.cluster.tls, liar.replica_name))

    async def show() -> None:
        for line in lines:
            await line.call("ShowHead", request, ANSWER_S)
            line.close()

    trio.run(show)
