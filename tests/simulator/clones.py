"""Two machines under one name and key: at any time one of them has the address, both can speak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.disk import File
from simulator.world import MS

if TYPE_CHECKING:
    from simulator.replica import ReplicaSite


class Clone:
    """A second replica with the disk of the first at this moment; the address goes to and fro."""

    def __init__(self, original: ReplicaSite, make: type[ReplicaSite], label: str) -> None:
        self._original, self._world = original, original.world
        self._ended = False
        self.copy = make(original.world, original.number, copy=label)
        views, files = original.disk.image()
        self.copy.disk.views = views
        self.copy.disk.files = {
            path.replace(f"/{original.disk.name}/", f"/{self.copy.disk.name}/"): File(data)
            for path, data in files.items()
        }
        self.copy.tainted = "clone"
        original.key_at_large = self.copy.key_at_large = True
        self.copy.start()
        self._exchange()

    def _exchange(self) -> None:
        if self._ended:
            return
        name = self._original.name
        holder = self._world.sites[name]
        self._take(self._original if holder is self.copy else self.copy)
        self._world.after(700 * MS, self._exchange)

    def _take(self, holder: ReplicaSite) -> None:
        self._world.sites[holder.name] = holder
        self._world.network.restarted(holder.name)

    def stop(self) -> None:
        if not self._ended:
            self._ended = True
            self._take(self._original)
            self.copy.stays_down = "stopped"
            self.copy.crash("clone stopped")
