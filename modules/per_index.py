"""What is made of an index's contents and kept until they change."""

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from modules.index_files import Stored
from modules.retriever import PassageIndex

Made = TypeVar("Made")


class PerIndex(Generic[Made]):
    """`make(index.contents)` when first asked for and whenever the contents are others; thread-safe."""

    def __init__(self, make: Callable[[Mapping[str, Stored]], Made]) -> None:
        self._make = make
        self._made: weakref.WeakKeyDictionary[PassageIndex, tuple[Mapping[str, Stored], Made]] = (
            weakref.WeakKeyDictionary()
        )
        self._making = threading.Lock()

    def __call__(self, index: PassageIndex) -> Made:
        with self._making:
            contents = index.contents
            known = self._made.get(index)
            # A generation is written before the contracts of a write are there; the contents themselves are not.
            if known is None or known[0] is not contents:
                self._made[index] = known = (contents, self._make(contents))
            return known[1]
