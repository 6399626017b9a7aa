"""Real application keys for alice, bob and carol: OpenSSH Ed25519 and age X25519 key pairs in files."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from verifier.files import SECRET_MODE, write_new

BECH32_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
BECH32_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)


def make_keys(folder: Path, owner: str) -> dict[str, Path]:
    """Write a fresh SSH and age key pair of `owner` into `folder`; the public key files by application."""
    folder.mkdir(parents=True, exist_ok=True)
    ssh = Ed25519PrivateKey.generate()
    ssh_secret = ssh.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    ssh_public = ssh.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_new(folder / "ssh", ssh_secret, SECRET_MODE)
    (folder / "ssh.pub").write_bytes(ssh_public + f" {owner}\n".encode())
    age = X25519PrivateKey.generate()
    age_secret = bech32("age-secret-key-", age.private_bytes_raw()).upper()
    write_new(folder / "age", f"{age_secret}\n".encode(), SECRET_MODE)
    (folder / "age.pub").write_text(bech32("age", age.public_key().public_bytes_raw()) + "\n")
    return {"ssh": folder / "ssh.pub", "age": folder / "age.pub"}


def bech32(prefix: str, data: bytes) -> str:
    """Bech32 (BIP 173) of 32 bytes under a human-readable prefix, as age writes its keys."""
    bits = int.from_bytes(data, "big") << 4  # 256 bits padded to 52 groups of five
    words = [bits >> shift & 31 for shift in range(255, -1, -5)]
    expanded = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    remainder = _polymod([*expanded, *words, 0, 0, 0, 0, 0, 0]) ^ 1
    words += [remainder >> shift & 31 for shift in (25, 20, 15, 10, 5, 0)]
    return prefix + "1" + "".join(BECH32_ALPHABET[word] for word in words)


def _polymod(words: list[int]) -> int:
    value = 1
    for word in words:
        top = value >> 25
        value = (value & 0x1FFFFFF) << 5 ^ word
        for shift, generator in enumerate(BECH32_GENERATORS):
            value ^= generator if top >> shift & 1 else 0
    return value
