"""Models on the Hugging Face hub: which names mean one, what of it is fetched, and what a directory of the hub's cache is.

Weights are fetched as safetensors only, and beside them JSON, tokenizer files, licences and the card: never a pickle, never
Python code.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qtk.checkpoint.reader import CARD_NAME, COMPANION_PATTERNS, INDEX_NAME
from qtk.errors import InputError, MachineError, QtkError, listing
from qtk.progress import Progress, note, shows_progress
from qtk.redaction import redact

Wanted = Literal["model", "adapter", "config", "tokenizer"]

_HUB_ID = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?$")
_CONFIG_OF: dict[Wanted, str] = {
    "model": "config.json",
    "adapter": "adapter_config.json",
    "config": "config.json",
    "tokenizer": "tokenizer_config.json",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SECONDS = 15.0  # that the hub may take to answer before it counts as out of reach


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, "organisation/name" or "organisation/name@revision"."""
    return _HUB_ID.match(text) is not None


def model_directory(place: Path | str, wanted: Wanted = "model") -> Path:
    """The directory of a model argument: a local path, or a model on the hub, which is fetched into the hub's own cache.

    A local directory wins where it exists. A text that is neither comes back as it is, for the caller's own complaint.
    wanted: what is fetched: a model, an adapter, a model's config.json alone, or its small files without the weights.
    InputError for an id that the hub does not know or does not show; MachineError where the hub cannot be reached and its
    cache does not hold the model.
    """
    path, text = Path(place), str(place)
    # "runs/merged" beside an existing "runs" is a slip in a path: the hub is not asked about it.
    if path.exists() or not is_hub_id(text) or path.parent.is_dir():
        return path
    return fetch(text, wanted)


def fetch(hub_id: str, wanted: Wanted = "model") -> Path:
    """Fetches what is wanted of a model on the hub; returns its directory in the hub's cache. Errors as of
    `model_directory`."""
    match = _HUB_ID.match(hub_id)
    if match is None:
        raise InputError(
            f"{hub_id!r} is not the id of a model on the hub (organisation/name, or organisation/name@revision)."
        )
    name, revision = match["name"], match["revision"]
    try:
        with _sentences(name, revision):
            return _fetch(name, revision, wanted)
    except MachineError as error:
        cached = _cached(name, revision, _CONFIG_OF[wanted])
        if cached is None:
            raise MachineError(
                f"{hub_id!r} is not a directory here, and the hub cannot be asked for it: {error} Give the directory of a "
                "model, or try again with a network."
            ) from None
        note(f"The hub cannot be reached: {hub_id} is read from its cache on this machine.")
        return cached


@dataclass(frozen=True)
class HubSurvey:
    """What fetching would find. directory: in the cache, None where a file is still to be fetched; config: the content of config.json
    (of adapter_config.json for an adapter); bytes: of all files; missing: of those that are not in the cache."""

    directory: Path | None
    config: dict[str, Any]
    bytes: int
    missing: int


def survey(hub_id: str, wanted: Wanted) -> HubSurvey:
    """What `fetch` would fetch, without keeping anything: the small files that have to be read for that go into a directory that is
    removed again. Errors as of `fetch`."""
    match = _HUB_ID.match(hub_id)
    if match is None:
        raise InputError(f"{hub_id!r} is not the id of a model on the hub (organisation/name).")
    name, revision = match["name"], match["revision"]
    try:
        with _sentences(name, revision), tempfile.TemporaryDirectory(prefix="qtk-") as folder:
            return _survey(name, revision, wanted, Path(folder))
    except MachineError:
        cached = _cached(name, revision, _CONFIG_OF[wanted])
        if cached is None:
            raise
        there = sum(path.stat().st_size for path in cached.iterdir() if path.is_file())
        return HubSurvey(cached, json.loads((cached / _CONFIG_OF[wanted]).read_bytes()), there, 0)


def _survey(name: str, revision: str | None, wanted: Wanted, folder: Path) -> HubSurvey:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    config = _CONFIG_OF[wanted]
    if config not in sizes:
        raise InputError(f"{name} on the hub does not hold {config}: it is not {_called(wanted)}.")

    def cached(file: str) -> Path | None:
        found = try_to_load_from_cache(name, file, revision=info.sha)
        return Path(found) if isinstance(found, str) else None

    def read(file: str) -> Path:
        return cached(file) or Path(
            hf_hub_download(name, file, revision=info.sha, local_dir=folder, etag_timeout=_SECONDS)
        )

    index = read(INDEX_NAME) if INDEX_NAME in sizes and wanted == "model" else None
    files = dict.fromkeys([config, *_small_files(sizes), *_weight_files(name, sizes, index, wanted)])
    absent = [file for file in files if cached(file) is None]
    place = cached(config)
    return HubSurvey(
        None if absent or place is None else place.parent,
        json.loads(read(config).read_bytes()),
        sum(sizes[file] for file in files),
        sum(sizes[file] for file in absent),
    )


def require_data_set(name: str) -> None:
    """InputError for a data set that the hub does not show to this user, MachineError where the hub cannot be reached: asked
    first, because the library that loads data sets tries again for half a minute."""
    from huggingface_hub import HfApi

    try:
        with _sentences(name, None, "data set"):
            HfApi().dataset_info(name, timeout=_SECONDS)
    except MachineError as error:
        raise MachineError(
            f"{name!r} is not a file here, and the hub cannot be asked for a data set of that name: {error}"
        ) from None


def out_of_reach(error: BaseException | None) -> bool:
    """Whether an error, or what it arose from, says that the hub cannot be reached."""
    while error is not None:
        if isinstance(error, ConnectionError) or _of_the_network(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _of_the_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "requests",
        "urllib3",
    )


def _fetch(name: str, revision: str | None, wanted: Wanted) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # its lines about retries say nothing that our sentence does not
    bars = shows_progress() == "bars"
    if not bars:
        disable_progress_bars()
    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}

    config = _CONFIG_OF[wanted]
    if config not in sizes:
        raise InputError(f"{name} on the hub does not hold {config}: it is not {_called(wanted)}.")
    # By the revision's name, which the cache then knows without a network; all others by the commit that it meant.
    directory = Path(hf_hub_download(name, config, revision=revision, etag_timeout=_SECONDS)).parent

    def download(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=directory.name, etag_timeout=_SECONDS))

    files = _small_files(sizes) if wanted != "config" else []
    if wanted in ("model", "adapter"):
        index = download(INDEX_NAME) if INDEX_NAME in sizes and wanted == "model" else None
        files += _weight_files(name, sizes, index, wanted)
    note(f"Fetching {name} at {directory.name[:12]} from the hub ({sum(sizes[f] for f in files) / 1e6:,.0f} MB).")
    with Progress(f"fetch {name}", total=len(files), unit="file") as progress:
        for file in files:
            download(file)
            progress.advance(1, file)
    return directory


def _called(wanted: Wanted) -> str:
    called: dict[Wanted, str] = {"adapter": "an adapter", "tokenizer": "a model with a tokenizer"}
    return called.get(wanted, "a model that qtk reads")


def _small_files(sizes: dict[str, int]) -> list[str]:
    patterns = (*COMPANION_PATTERNS, CARD_NAME)
    return [file for file in sizes if any(_matches(file, pattern) for pattern in patterns) and not file.endswith(".py")]


def _matches(file: str, pattern: str) -> bool:
    """As a glob: * does not stand for a slash."""
    return file.count("/") == pattern.count("/") and fnmatch.fnmatchcase(file, pattern)


def _weight_files(name: str, sizes: dict[str, int], index: Path | None, wanted: Wanted) -> list[str]:
    """The files that hold the weights, and no other form of the same weights beside them."""
    if wanted == "adapter":
        files = [file for file in ("adapter_model.safetensors",) if file in sizes]
    elif index is not None:
        named = set(json.loads(index.read_bytes()).get("weight_map", {}).values())
        files = [file for file in sizes if file in named and file.endswith(".safetensors")]
    elif "model.safetensors" in sizes:
        files = ["model.safetensors"]
    else:
        files = [file for file in sizes if _matches(file, "*.safetensors")]
    if not files:
        pickles = [file for file in sizes if any(_matches(file, pattern) for pattern in _PICKLES)]
        raise InputError(
            f"{name} on the hub has no safetensors"
            + (f", only pickles, which can run code when they are loaded:\n{listing(pickles)}" if pickles else ".")
        )
    return files


def _cached(name: str, revision: str | None, config: str) -> Path | None:
    """The directory of an earlier fetch."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, config, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


@contextmanager
def _sentences(name: str, revision: str | None, kind: str = "model") -> Iterator[None]:
    """Turns the hub client's errors into sentences; the classes of its network library differ from version to version."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except QtkError:
        raise
    except GatedRepoError:
        raise InputError(
            f"{name} on the hub is gated: accept its terms on its page there, then log in with `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{name} on the hub has no revision {revision!r}.") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"{name!r} is not here, and the hub does not show a {kind} of that name. Check the spelling; where "
            "it is private or gated, log in with `hf auth login`."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise InputError(
                f"The hub refuses {name} to this user. Log in with `hf auth login`; the token may have expired."
            ) from None
        raise MachineError(f"The hub answered with status {status}.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MachineError(first_line(error)) from None
    except Exception as error:
        if not _of_the_network(error):
            raise
        raise MachineError(first_line(error)) from None


def first_line(error: Exception) -> str:
    """What an error says, in one line without secrets."""
    text = redact(str(error)).strip().splitlines()
    return f"{(text or [type(error).__name__])[0].rstrip('.')}."
