"""tools/gen_proto.py --check says so when generated code is missing, stale or left over."""

from pathlib import Path

import gen_proto
import pytest

HOUSE = Path(__file__).resolve().parents[2]
PROTO = 'syntax = "proto3";\npackage sample.v1;\nmessage Thing { uint64 number = 1; }\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source root with one fresh message file."""
    (tmp_path / "sample" / "v1").mkdir(parents=True)
    (tmp_path / "sample" / "v1" / "thing.proto").write_text(PROTO)
    gen_proto.generate(tmp_path, tmp_path)
    return tmp_path


def test_generated_code_and_stubs_lie_beside_the_source(tree: Path) -> None:
    assert sorted(gen_proto.generated_files(tree)) == ["sample/v1/thing_pb2.py", "sample/v1/thing_pb2.pyi"]
    assert gen_proto.differences(tree) == []


def test_stale_code_is_named(tree: Path) -> None:
    (tree / "sample" / "v1" / "thing.proto").write_text(PROTO.replace("number", "count"))
    assert gen_proto.differences(tree) == ["sample/v1/thing_pb2.py: stale", "sample/v1/thing_pb2.pyi: stale"]


def test_missing_and_left_over_code_is_named(tree: Path) -> None:
    (tree / "sample" / "v1" / "thing_pb2.pyi").unlink()
    (tree / "sample" / "v1" / "gone_pb2.py").write_text("")
    expected = ["sample/v1/gone_pb2.py: no .proto makes it", "sample/v1/thing_pb2.pyi: missing"]
    assert gen_proto.differences(tree) == expected


def test_what_the_compiler_refuses_is_a_typed_error(tree: Path) -> None:
    (tree / "sample" / "v1" / "thing.proto").write_text("nonsense")
    with pytest.raises(gen_proto.GenerationFailed):
        gen_proto.differences(tree)


def test_the_committed_code_is_fresh() -> None:
    assert gen_proto.differences(HOUSE / "proto") == []
