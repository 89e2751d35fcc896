"""The only door to disk and S3: whole objects under a root, committed atomically, never half-written.

A *name* is relative to its store's root, with `/` between parts. Ids and other foreign strings become names only
through `safe_name`. boto3 is imported when an S3 store is first used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

from mcpl.errors import ConfigError

T = TypeVar("T")

TEMPORARY = ".tmp-"
"""Starts the name of every temporary file; no listing shows one, and no caller can name one."""

RETRY_SECONDS = 60.0
"""How long an S3 request is tried again through dropped connections and overloaded servers."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing."""

    name: str
    size: int
    """bytes"""


class Store(Protocol):
    """A root on disk or in a bucket. Faults of the network that outlive the retries raise ConnectionError, a full
    disk or bucket raises OSError."""

    uri: str

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Commit `data` under a name that nobody has used. False: somebody else's object is there, untouched.

        Where a store's reply was lost or says "taken", what is there is read back: our very bytes mean True.
        """

    def put(self, name: str, data: bytes) -> None:
        """Write or replace; a reader sees the old bytes or the new, nothing between."""

    def get(self, name: str) -> bytes:
        """The whole object; FileNotFoundError where there is none."""

    def reader(self, name: str) -> BinaryIO:
        """A seekable view that fetches only what is read; FileNotFoundError where there is none."""

    def list(self, prefix: str = "") -> list[Entry]:
        """Every object whose name starts with `prefix`, from one listing, by name. An absent root holds none."""

    def delete(self, name: str) -> None:
        """Remove; deleting what is not there is no error."""

    def join(self, name: str) -> str:
        """The full path or URI of a name."""


def open_store(uri: str | os.PathLike, retry_seconds: float = RETRY_SECONDS) -> Store:
    """The store at a path, `file://...` or `s3://bucket/prefix`. Touches nothing yet.

    S3 credentials and endpoint come from the usual AWS settings (`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL` ...).
    Any other scheme is refused with a ConfigError, so that no dataset can make us fetch from the network.
    """
    uri = os.fspath(uri)
    if not uri or "\0" in uri:
        raise ConfigError("a dataset or output location is empty; give a path, file://... or s3://bucket/prefix")
    if "://" not in uri:
        return LocalStore(Path(uri))
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        if "@" in parts.netloc or ":" in parts.netloc:
            raise ConfigError("an s3:// location is s3://bucket/prefix; credentials and ports belong in AWS_* settings")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", parts.netloc):
            raise ConfigError(f"{parts.netloc!r} is no bucket name; an S3 location is s3://bucket/prefix")
        prefix = uri.split("://", 1)[1].partition("/")[2].strip("/")
        if prefix:
            checked_name(prefix)
        return S3Store(parts.netloc, prefix, retry_seconds)
    raise ConfigError(f"cannot use locations of scheme {parts.scheme!r}; give a path, file://... or s3://bucket/prefix")


def locate(uri: str | os.PathLike) -> tuple[Store, str | None]:
    """(store, name) where `uri` is one existing object, (store, None) where it is a root that holds objects.

    ConfigError where nothing is there.
    """
    uri = os.fspath(uri).rstrip("/")
    store = open_store(uri)
    if isinstance(store, LocalStore):
        if store.root.is_dir():
            return store, None
        if store.root.is_file():
            return LocalStore(store.root.parent), store.root.name
    else:
        parent, _, name = uri.rpartition("/")
        if "://" in parent and parent.split("://")[1]:
            above = open_store(parent)
            if any(entry.name == name for entry in above.list(name)):
                return above, name
        if store.list():
            return store, None
    raise ConfigError(f"nothing is at {uri}")


def safe_name(id: str, limit: int = 120) -> str:
    """A file name for any id: different ids get different names, plain ids keep theirs, no id leaves its folder.

    Letters, digits, `_`, `-` and inner dots stay; the rest is percent-encoded as UTF-8. A longer name than `limit`
    is cut and closed by a hash of the whole id.
    """
    encoded = quote(id.encode("utf-8", "surrogatepass"), safe="").replace("~", "%7E")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if not encoded:
        return "~empty"
    if len(encoded) <= limit:
        return encoded
    tail = "~" + hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return encoded[: limit - len(tail)] + tail


def checked_name(name: str) -> str:
    """The name itself, or ConfigError where it could leave its root or meet a temporary file."""
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") or part.startswith(TEMPORARY) for part in parts):
        raise ConfigError(f"{name!r} is no name for a stored object: it must be relative, without '..' or empty parts")
    return name


def byte_size(count: float) -> str:
    """Bytes for people, in the unit that leaves one to three digits: 7.2 kB, 230 MB, 1.4 TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


class LocalStore:
    """A directory. A commit is a hard link, which fails where the name is taken; a rename would overwrite."""

    def __init__(self, root: Path):
        self.root = Path(os.path.abspath(root.expanduser()))
        self.uri = str(self.root)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        target = self._path(name)
        with self._temporary(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            except OSError as fault:
                if fault.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                # A filesystem without hard links: the name and content are the plan's, so a lost race is harmless.
                if target.exists():
                    return False
                os.replace(temporary, target)
            _sync_directory(target.parent)
        return True

    def put(self, name: str, data: bytes) -> None:
        target = self._path(name)
        with self._temporary(target, data) as temporary:
            os.replace(temporary, target)
            _sync_directory(target.parent)

    def get(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def reader(self, name: str) -> BinaryIO:
        return open(self._path(name), "rb")

    def list(self, prefix: str = "") -> list[Entry]:
        if above := prefix.rpartition("/")[0]:
            checked_name(above)
        return sorted(self._walk(self.root / above, above and f"{above}/", prefix), key=lambda entry: entry.name)

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def join(self, name: str) -> str:
        return str(self._path(name))

    def _path(self, name: str) -> Path:
        return self.root / checked_name(name)

    def _walk(self, folder: Path, above: str, prefix: str) -> Iterator[Entry]:
        """The files below `folder`, named `above` and their own; nothing is asked of those that are not wanted, for
        every lease looks for a few compact files among all of a run's parts."""
        try:
            children = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for child in children:
            name = above + child.name
            if child.name.startswith(TEMPORARY) or not (name.startswith(prefix) or prefix.startswith(f"{name}/")):
                continue
            if child.is_dir(follow_symlinks=False):  # a linked folder could lead in circles; linked files are read
                yield from self._walk(Path(child.path), f"{name}/", prefix)
            elif child.is_file() and name.startswith(prefix):
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    yield Entry(name, child.stat().st_size)

    @contextlib.contextmanager
    def _temporary(self, target: Path, data: bytes) -> Iterator[Path]:
        """A synced file with `data` beside the target, gone afterwards (a crash leaves it, unseen)."""
        _make_directory(target.parent)
        temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _make_directory(folder: Path) -> None:
    """Create it and its parents, each entry synced so that a commit below survives a power cut."""
    if folder.is_dir():
        return
    if folder.exists():
        raise ConfigError(f"{folder} is a file; a directory is needed there")
    _make_directory(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_directory(folder.parent)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
TRANSIENT_CODES = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "RequestTimeTooSkewed",
    "ConditionalRequestConflict",
}
OPERATOR_CODES = {
    "NoSuchBucket",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "PermanentRedirect",
    "AllAccessDisabled",
    "InvalidBucketName",
}
FULL_CODES = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"}
_conditional: dict[tuple[str, str], bool] = {}
"""(endpoint, bucket) -> whether it honours `If-None-Match: *`; probed once per process"""


class S3Store:
    """A bucket's prefix on AWS or any server that speaks its protocol.

    A commit is `PUT If-None-Match: *`. Where a store refuses or ignores that header (probed once), it is a look and
    a plain PUT: two writers may then both win, which is harmless where the plan fixes name and content.
    """

    def __init__(self, bucket: str, prefix: str, retry_seconds: float = RETRY_SECONDS):
        self.bucket = bucket
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self.retry_seconds = retry_seconds
        self._root = f"{prefix}/" if prefix else ""
        self._made: object | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_made": None}

    def put_if_absent(self, name: str, data: bytes) -> bool:
        checked_name(name)
        if self._honours_conditions():
            return self._put_new(name, data) or self._get_or_none(name) == data
        if (there := self._get_or_none(name)) is not None:
            return there == data
        self.put(name, data)
        return True

    def put(self, name: str, data: bytes) -> None:
        key = self._key(name)
        self._ask(name, lambda s3: s3.put_object(Bucket=self.bucket, Key=key, Body=data))

    def get(self, name: str) -> bytes:
        data = self._get_or_none(name)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.join(name))
        return data

    def reader(self, name: str) -> BinaryIO:
        key = self._key(name)
        head = self._ask(name, _or_none(lambda s3: s3.head_object(Bucket=self.bucket, Key=key)))
        if head is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.join(name))
        return _RangeReader(head["ContentLength"], lambda start, stop: self._range(name, start, stop))

    def list(self, prefix: str = "") -> list[Entry]:
        found: list[Entry] = []
        request = {"Bucket": self.bucket, "Prefix": self._root + prefix}
        while True:
            page = self._ask(prefix, lambda s3: s3.list_objects_v2(**request))
            for item in page.get("Contents", ()):
                name = item["Key"][len(self._root) :]
                if name and not any(part.startswith(TEMPORARY) for part in name.split("/")):
                    found.append(Entry(name, item["Size"]))
            if not page.get("IsTruncated"):
                return sorted(found, key=lambda entry: entry.name)
            request["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, name: str) -> None:
        key = self._key(name)
        self._ask(name, lambda s3: s3.delete_object(Bucket=self.bucket, Key=key))

    def join(self, name: str) -> str:
        return f"{self.uri}/{checked_name(name)}"

    def _key(self, name: str) -> str:
        return self._root + checked_name(name)

    def _get_or_none(self, name: str) -> bytes | None:
        key = self._key(name)
        return self._ask(name, _or_none(lambda s3: s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()))

    def _range(self, name: str, start: int, stop: int) -> bytes:
        place = {"Bucket": self.bucket, "Key": self._key(name), "Range": f"bytes={start}-{stop - 1}"}
        return self._ask(name, lambda s3: s3.get_object(**place)["Body"].read())

    def _put_new(self, name: str, data: bytes) -> bool:
        """True where this very request created the object, False on 412."""
        key = self._root + name

        def attempt(s3) -> bool:
            try:
                s3.put_object(Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*")
            except s3.exceptions.ClientError as fault:
                if _status(fault) == 412:
                    return False
                raise
            return True

        return self._ask(name, attempt)

    def _honours_conditions(self) -> bool:
        place = (self._s3().meta.endpoint_url, self.bucket)
        if place not in _conditional:
            _conditional[place] = self._probe()
        return _conditional[place]

    def _probe(self) -> bool:
        """Write one temporary object twice; a store that honours the header refuses the second."""
        from botocore.exceptions import ClientError

        name = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            self._put_new(name, b"probe")
            return not self._put_new(name, b"probe")
        except ClientError as fault:
            if _status(fault) in (400, 405, 501):
                return False
            raise
        finally:
            self._ask(name, lambda s3: s3.delete_object(Bucket=self.bucket, Key=self._root + name))

    def _ask(self, name: str, request: Callable[[object], T]) -> T:
        """One request, tried again with jittered pauses through transient faults for `retry_seconds`."""
        import tenacity
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=8),
            stop=tenacity.stop_after_delay(self.retry_seconds),
            reraise=True,
        )
        where = f"{self.uri}/{name}".rstrip("/")
        try:
            return attempts(lambda: request(self._s3()))
        except (NoCredentialsError, PartialCredentialsError):
            raise ConfigError(
                f"{self.uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from None
        except ClientError as fault:
            code, status = fault.response.get("Error", {}).get("Code", "?"), _status(fault)
            if _is_transient(fault):
                raise ConnectionError(
                    f"{where}: the store answered {code} ({status}) for {self.retry_seconds:g} s"
                ) from None
            if code in FULL_CODES or status == 507:
                raise OSError(errno.ENOSPC, f"the store is full ({code}); make room, then run again", where) from None
            if code in OPERATOR_CODES or status in (301, 403):
                raise ConfigError(
                    f"{self.uri}: the store answered {code} ({status}); check bucket and rights"
                ) from None
            raise
        except BotoCoreError as fault:
            if not _is_transient(fault):
                raise
            raise ConnectionError(
                f"{where}: no answer from the store for {self.retry_seconds:g} s ({type(fault).__name__});"
                " check AWS_ENDPOINT_URL and the network, then run the same command again"
            ) from None

    def _s3(self):
        if self._made is None:
            settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
            self._made = _client(os.getpid(), tuple(sorted(settings.items())))
        return self._made


@lru_cache(maxsize=8)
def _client(process: int, settings: tuple[tuple[str, str], ...]):
    """One client (safe for threads) per process and AWS settings: making one takes 0.2 s."""
    import boto3
    from botocore.config import Config

    given = dict(settings)
    own_endpoint = given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL")
    config = Config(
        retries={"total_max_attempts": 1},  # one layer of retries, `_ask`, so that a lost reply is known
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=16,
        request_checksum_calculation="when_required",  # many stores refuse trailing checksums over http
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"} if own_endpoint else None,
    )
    region = given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or ("us-east-1" if own_endpoint else None)
    return boto3.session.Session().client("s3", config=config, region_name=region)


def _status(fault) -> int:
    return fault.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _or_none(request: Callable[[object], T]) -> Callable[[object], T | None]:
    """The same request, answering None where the object does not exist."""

    def asked(s3) -> T | None:
        try:
            return request(s3)
        except s3.exceptions.ClientError as fault:
            code = fault.response.get("Error", {}).get("Code")
            if code in ("NoSuchKey", "404", "NotFound") or (_status(fault) == 404 and code != "NoSuchBucket"):
                return None
            raise

    return asked


def _is_transient(fault: BaseException) -> bool:
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError, ResponseStreamingError
    from botocore.exceptions import ConnectionError as Unreachable
    from urllib3.exceptions import HTTPError

    if isinstance(fault, ClientError):
        code = fault.response.get("Error", {}).get("Code")
        return _status(fault) in TRANSIENT_STATUS or code in TRANSIENT_CODES
    dropped = (Unreachable, HTTPClientError, IncompleteReadError, ResponseStreamingError, HTTPError)
    return isinstance(fault, (*dropped, ConnectionError, TimeoutError))


class _RangeReader(io.RawIOBase):
    """A remote object as a seekable file: each read is one ranged request."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]):
        self._size, self._fetch, self._at = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, count: int = -1) -> bytes:
        stop = self._size if count is None or count < 0 else min(self._at + count, self._size)
        if stop <= self._at:
            return b""
        data = self._fetch(self._at, stop)
        self._at += len(data)
        return data

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
