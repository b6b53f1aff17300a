"""Named entries that others may add to: ours, registered ones, and those of installed packages.

A package offers an entry by an entry point of the group ``forefed.<slot>`` (PyPA "Entry points
specification"). They are looked up when a name is missing or all are asked for, so a run that uses
our own entries only imports nobody else's code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, distributions
from typing import Generic, TypeVar

from forefed.core.errors import UserError

T = TypeVar("T")


class Entries(Mapping[str, T], Generic[T]):
    """Entries of one group by name.

    Args:
        group: of the entry points, below "forefed.", for example "codec".
        own: the entries that this package brings.
        name_of: the name of an entry; raises UserError for what cannot be one.
        taken_in: told of every entry that is one.
    """

    def __init__(
        self,
        group: str,
        own: Iterable[T],
        name_of: Callable[[T], str],
        taken_in: Callable[[T], None] = lambda _: None,
    ):
        self.group = f"forefed.{group}"
        self._name_of = name_of
        self._taken_in = taken_in
        self._entries: dict[str, T] = {}
        self._looked = False
        for entry in own:
            self.add(entry)

    def add(self, entry: T) -> T:
        """Take an entry in. The same one twice is once.

        Raises:
            UserError: another entry has that name, or it can be none of this group.
        """
        name = self._name_of(entry)
        there = self._entries.setdefault(name, entry)
        if there is not entry and not _reloaded(there, entry):
            raise UserError(
                f"{self.group}: '{name}' is taken by {_place(there)}; give another name"
            )
        self._entries[name] = entry
        self._taken_in(entry)
        return entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            self._look()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._look()
        return iter(self._entries)

    def __len__(self) -> int:
        self._look()
        return len(self._entries)

    def _look(self) -> None:
        """Take in what installed packages offer, once."""
        if self._looked:
            return
        self._looked = True
        for point in _offered():
            if point.group == self.group:
                self.add(_loaded(point))


@cache
def _offered() -> tuple[EntryPoint, ...]:
    """Every entry point of ours; all packages' files are read once a process."""
    return tuple(
        point
        for package in distributions()
        for point in package.entry_points
        if point.group.startswith("forefed.")
    )


def _loaded(point: EntryPoint) -> T:  # type: ignore[type-var]
    try:
        return point.load()
    except Exception as error:
        # whatever a package of somebody else does at import: its name, and the remedy
        package = point.dist.name if point.dist else point.value
        raise UserError(
            f"{point.group}: the package '{package}' offers '{point.name}' ({point.value}), which "
            f"cannot be loaded ({type(error).__name__}: {error}); mend or uninstall that package"
        ) from error


def _place(entry: object) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', entry)}"


def _reloaded(former: object, entry: object) -> bool:
    """Is it the same class, defined anew (a notebook's cell that was run twice)?"""
    return isinstance(entry, type) and _place(former) == _place(entry)
