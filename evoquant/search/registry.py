"""Searches by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from evoquant.errors import ConfigurationError, UnknownNameError
from evoquant.search.searcher import Searcher

SearcherClass = TypeVar("SearcherClass", bound=Callable[..., Searcher])


class SearcherRegistry(Mapping[str, Callable[..., Searcher]]):
    """Classes of searchers by the name that a configuration gives them."""

    def __init__(self) -> None:
        self._classes: dict[str, Callable[..., Searcher]] = {}

    def register(self, name: str) -> Callable[[SearcherClass], SearcherClass]:
        """A decorator that makes a class available under a name.

        Raises:
            ConfigurationError: If the name is taken.
        """

        def add(searcher: SearcherClass) -> SearcherClass:
            if name in self._classes:
                raise ConfigurationError(f"There is already a search named '{name}'.")
            self._classes[name] = searcher
            return searcher

        return add

    def __getitem__(self, name: str) -> Callable[..., Searcher]:
        if name not in self._classes:
            raise UnknownNameError("search algorithm", name, self._classes)
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def __contains__(self, name: object) -> bool:
        return name in self._classes


SEARCHERS = SearcherRegistry()
"""All searches; each takes ``(domain, *, n_objectives, seed, evaluations, seeds, ...)``."""
