"""Many strings in two arrays, which processes share as long as nobody writes to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class PackedStrings:
    """N strings, read-only. A list's strings would be copied by every worker that reads them: reading one counts
    its references, which writes to its page.

    content  (bytes,)  uint8, UTF-8, one string after the other
    starts   (N+1,)    int64, string i is content[starts[i] : starts[i + 1]]
    """

    content: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, strings: Sequence[str]) -> PackedStrings:
        encoded = [string.encode(errors="surrogatepass") for string in strings]
        lengths = np.array([0, *map(len, encoded)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> str:
        """Of 0 <= index < N."""
        start, end = self.starts[index : index + 2].tolist()
        return self.content[start:end].tobytes().decode(errors="surrogatepass")
