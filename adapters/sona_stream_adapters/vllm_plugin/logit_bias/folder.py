"""The watched folder: one file a tenant, looked at by a thread of its own, never by a decoding step.

Whoever reads `BiasFolder.table` gets one consistent, immutable mapping; a change puts a new one in its place.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from .file import SUFFIX, BadBias, TenantBias, read_bias
from .settings import BiasSettings

__all__ = ["BiasFolder", "BiasTable"]

_log = logging.getLogger("sona_stream.vllm_plugin")

BiasTable = Mapping[str, TenantBias]
"""tenant -> its bias"""

_Signature = tuple[int, int, int]
"""(modified, size, inode): another one is another content"""


@dataclasses.dataclass(slots=True)
class _Seen:
    signature: _Signature
    tenant: str | None
    """None: nothing good was ever read under this name"""


class BiasFolder:
    """Reads what changed. A file that cannot be served keeps the tenant's previous bias; a file that is gone ends
    it; while the folder itself cannot be read, everything stays.
    """

    def __init__(self, settings: BiasSettings, vocab_size: int) -> None:
        self._settings, self._vocab_size = settings, vocab_size
        self._seen: dict[str, _Seen] = {}
        self._folder_trouble = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.table: BiasTable = MappingProxyType({})
        self.counts = {"loaded": 0, "removed": 0, "broken_files": 0, "refused_files": 0, "folder_errors": 0}

    def start(self) -> None:
        """Look once, now, and go on looking in a thread that does not keep the process alive."""
        self.scan()
        self._thread = threading.Thread(target=self._watch, name="sona-logit-bias", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def scan(self) -> None:
        """Look once. Never raises: what goes wrong is counted, and logged when it is news."""
        try:
            self._scan()
            self._folder_trouble = ""
        except Exception as error:
            self.counts["folder_errors"] += 1
            if str(error) != self._folder_trouble:
                self._folder_trouble = str(error)
                _log.warning("sona: the logit biases in %s cannot be read now: %s", self._settings.folder, error)

    def _watch(self) -> None:
        while not self._stop.wait(self._settings.poll_s):
            self.scan()

    def _scan(self) -> None:
        found = self._files()
        table = dict(self.table)
        for name in self._seen.keys() - found.keys():
            tenant = self._seen.pop(name).tenant
            if tenant is not None:
                del table[tenant]
                self.counts["removed"] += 1
                _log.info("sona: tenant %r has no logit bias any more", tenant)
        for name, signature in found.items():
            seen = self._seen.get(name)
            if seen is None or seen.signature != signature:
                self._take(name, signature, table)
        if table != self.table:
            self.table = MappingProxyType(table)

    def _files(self) -> dict[str, _Signature]:
        found = {}
        with os.scandir(self._settings.folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and not entry.name.startswith(".") and entry.is_file():
                    status = entry.stat()
                    found[entry.name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return dict(sorted(found.items()))

    def _take(self, name: str, signature: _Signature, table: dict[str, TenantBias]) -> None:
        before = self._seen.get(name)
        tenant = None if before is None else before.tenant
        self._seen[name] = _Seen(signature, tenant)
        if tenant is None and len(table) >= self._settings.tenants:
            self.counts["refused_files"] += 1
            _log.warning("sona: %s is not served: SONA_VLLM_BIAS_TENANTS=%d", name, self._settings.tenants)
            return
        path: Path = self._settings.folder / name
        try:
            bias = read_bias(path, self._settings.limits, vocab_size=self._vocab_size)
        except (BadBias, OSError) as error:
            self.counts["broken_files"] += 1
            kept = "nothing is served from it" if tenant is None else "the previous bias stays"
            _log.warning("sona: %s cannot be used, %s: %s", path, kept, error)
            return
        self._seen[name].tenant = bias.tenant
        table[bias.tenant] = bias
        self.counts["loaded"] += 1
        _log.info("sona: tenant %r has a logit bias on %d tokens (%s)", bias.tenant, len(bias.bias), bias.source)
