"""The folder of evidence: each finding a file, written whole and synced, named by its content."""

from __future__ import annotations

from pathlib import Path

from verifier.daemon import evidence as evidences
from verifier.daemon.evidence import Document, Evidence
from verifier.daemon.failures import Halted
from verifier.errors import ConfigError, Malformed
from verifier.files import read_file, sync_folder, write_new
from verifier.types import Realm


def keep_evidence(folder: Path, realm: Realm, evidence: Evidence, now_ms: int) -> Path:
    """The file that holds the evidence, on the disk when this returns. Raises ConfigError.

    The name follows from the content, so finding the same thing twice leaves one file.
    """
    path = folder / f"{evidence.kind}-{evidences.fingerprint(evidence)}.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.unlink(missing_ok=True)  # torn: only a whole file ever gets the final name
            write_new(draft, evidences.to_document(realm, evidence, now_ms))
            draft.rename(path)
            sync_folder(folder)
    except OSError as error:
        raise ConfigError(f"the evidence file {path} cannot be written: {error.strerror}") from None
    return path


def read_evidence(path: Path) -> Document:
    """The evidence in a file. Raises ConfigError when it cannot be read or is none."""
    try:
        return evidences.from_document(read_file(path, evidences.DOCUMENT_BYTES, "evidence file"))
    except Malformed as error:
        raise ConfigError(f"{path}: {error.what}") from None


def refuse_while_evidence_is_kept(folder: Path) -> None:
    """Raises Halted if the folder holds evidence: no more ratifications until a person has looked."""
    for path in sorted(folder.glob("*.json")):
        document = read_evidence(path)
        raise Halted(f"stopped before: {document.what}", path, document.exit_code)
