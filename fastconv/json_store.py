"""A dictionary kept in memory and in one JSON file per environment.

The file lies under XDG_CACHE_HOME (or ~/.cache) in `fastconv/`, mode 0700, and is named after a
digest of everything that its entries depend on besides their keys. Writers merge under a file lock
and replace the file atomically. A corrupt or foreign file is ignored, with one warning, and
rewritten when something is put; where nothing can be written, memory serves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no file locks on this system: the atomic replace alone remains
    fcntl = None  # type: ignore[assignment]

Entry = dict[str, Any]


class JsonStore:
    """One kind of entry.

    Args:
        name: of the file, and of the warnings.
        environment: what every entry depends on, as plain data; asked again at each use.
        valid: whether an entry from a file has the form it should have.
    """

    def __init__(
        self, name: str, environment: Callable[[], Entry], valid: Callable[[Entry], bool]
    ) -> None:
        self.name, self.environment, self.valid = name, environment, valid
        self.lock = threading.RLock()
        self.path: Path | None = None
        self.entries: dict[str, Entry] = {}
        self.warned: set[str] = set()

    def file(self) -> Path:
        """The file that entries are kept in (it may not exist yet)."""
        base = os.environ.get("XDG_CACHE_HOME")
        # The XDG rules have relative paths ignored.
        root = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
        text = json.dumps(self.environment(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return root / "fastconv" / f"{self.name}-{digest[:16]}.json"

    def current(self) -> dict[str, Entry]:
        """The entries, loaded once per path (XDG_CACHE_HOME may change under tests)."""
        with self.lock:
            path = self.file()
            if path != self.path:
                self.path, self.entries = path, self._read(path)
            return self.entries

    def put(self, key: str, entry: Entry) -> None:
        """Keeps an entry, also on disk where that can be written."""
        self.put_all({key: entry})

    def put_all(self, entries: dict[str, Entry]) -> None:
        """Keeps several entries with one write."""
        with self.lock:
            self.current().update(entries)
            path = self.path
            assert path is not None
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self._exclusive(path.with_suffix(".lock")):
                    # Another process may have written since: its entries stay.
                    self.entries = {**self._read(path), **self.entries}
                    self._write(path)
            except OSError as error:
                self._warn("write", f"{path} cannot be written ({error}); results stay in memory")

    def clear(self) -> None:
        """Forgets everything and deletes the file."""
        with self.lock:
            with contextlib.suppress(OSError):
                self.file().unlink(missing_ok=True)
            self.reload()

    def reload(self) -> None:
        """Drops what is in memory; the file is read again when next needed."""
        with self.lock:
            self.path, self.entries = None, {}

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(f"fastconv {self.name} cache: {text}", RuntimeWarning, stacklevel=2)

    def _read(self, path: Path) -> dict[str, Entry]:
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict) or content.get("environment") != self.environment():
                raise ValueError("it belongs to another environment")
            entries = content["entries"]
            return {
                key: entry
                for key, entry in entries.items()
                if isinstance(entry, dict) and self.valid(entry)
            }
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._warn("read", f"{path} cannot be read ({error})")
        except (ValueError, KeyError, AttributeError) as error:
            self._warn("corrupt", f"{path} is ignored ({error}); it is rewritten when needed")
        return {}

    def _write(self, path: Path) -> None:
        content = {"environment": self.environment(), "entries": self.entries}
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file, indent=1, sort_keys=True)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    @contextlib.contextmanager
    def _exclusive(self, path: Path) -> Iterator[None]:
        # The kernel drops the lock with the process: no stale lock can hang a later one.
        with open(path, "w") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
