"""Generate the Python code of proto/, or prove that the committed code is what the generator makes today.

The generated modules lie beside their .proto files: proto/ is a source root, paths under it are import paths.
Messages and their stubs only: the servers work on raw bytes and need no service classes.
"""

import argparse
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "proto"
GENERATED = ("*_pb2.py", "*_pb2.pyi")


class GenerationFailed(Exception):
    """The compiler refused a file; its own message stands on stderr."""


def generate(source: Path, target: Path) -> None:
    """Write the generated code of every .proto under `source` to the same place under `target`.

    Raises GenerationFailed when the compiler refuses a file.
    """
    from grpc_tools import protoc

    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.proto"))
    if not names:
        return
    stubs = Path(sysconfig.get_path("scripts")) / "protoc-gen-mypy"
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={stubs}",
        f"-I{source}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        *names,
    ]
    if protoc.main(arguments) != 0:
        raise GenerationFailed("protoc refused the files under proto/")


def generated_files(root: Path) -> dict[str, bytes]:
    """Every generated file under `root`, by its path there."""
    found = [path for pattern in GENERATED for path in root.rglob(pattern)]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(found)}


def differences(source: Path) -> list[str]:
    """One sentence per generated file that is missing, stale or left over; empty when all are fresh."""
    with tempfile.TemporaryDirectory() as folder:
        generate(source, Path(folder))
        fresh = generated_files(Path(folder))
    present = generated_files(source)
    sentences = {
        **{name: f"{name}: missing" for name in fresh.keys() - present.keys()},
        **{name: f"{name}: no .proto makes it" for name in present.keys() - fresh.keys()},
        **{name: f"{name}: stale" for name in fresh.keys() & present.keys() if fresh[name] != present[name]},
    }
    return [sentences[name] for name in sorted(sentences)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when the code was generated or is fresh, 1 when it is not."""
    parser = argparse.ArgumentParser(description="Generate the code of proto/.")
    parser.add_argument("--check", action="store_true", help="change nothing, fail when code is stale")
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            generate(ROOT, ROOT)
            return 0
        stale = differences(ROOT)
    except GenerationFailed as error:
        print(error, file=sys.stderr)
        return 1
    for sentence in stale:
        print(f"proto/{sentence}; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
