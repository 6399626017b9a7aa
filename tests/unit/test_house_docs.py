"""The documents: every link leads somewhere, and what a second implementation needs is written down."""

import re
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
MADE = ("build", "dist", "demo")  # and what begins with a dot
PAGES = sorted(
    page
    for page in HOUSE.rglob("*.md")
    if not any(part.startswith(".") or part in MADE for part in page.relative_to(HOUSE).parts)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
LABEL = re.compile(r'"(e2eks/1/[a-z0-9/-]+)"')
# One process or the replicas alone compute these: rows, logs and registers.
INTERNAL = {"log-link", "proof-id", "signonce-header", "signonce-row", "state", "vrf-cache"}


def anchors(page: Path) -> set[str]:
    """As web pages of repositories name their headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOUSE)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_label_that_outsiders_compute_is_written_down() -> None:
    rooms = ("keyserver", "verifier", "replication", "kv")
    sources = [file.read_text(encoding="utf-8") for room in rooms for file in (HOUSE / room).rglob("*.py")]
    used = {label for source in sources for label in LABEL.findall(source)}
    pages = [HOUSE / "docs" / "contract.md", HOUSE / "proto" / "README.md"]
    written = {
        label
        for page in pages
        for label in re.findall(r"e2eks/1/[a-z0-9/-]+", page.read_text(encoding="utf-8"))
    }
    assert used - written == {f"e2eks/1/{name}" for name in INTERNAL}
    assert written - used == set()
