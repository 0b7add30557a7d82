"""Publishing on the Hugging Face hub, through its own client: one commit, so that a reader sees all of a bundle or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtk.checkpoint.hub import first_line, out_of_reach
from qtk.errors import GateFailed, InputError, MachineError, QtkError
from qtk.progress import shows_progress
from qtk.release.destinations import OwnFile, RemoteFile, RemoteState, Wishes

NOTHING_LOST = "Nothing there was changed; what was uploaded before is not sent again by the same command."
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubRepository:
    """A model repository of the hub. patience: seconds in which the hub must answer; uploads may take as long as they move."""

    def __init__(self, name: str, wishes: Wishes, *, patience: float = 30.0) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(f"hf://{name} is not a repository: hf://ORGANISATION/NAME.")
        self.address = f"hf://{name}"
        self._name, self._wishes, self._patience = name, wishes, patience

    def state(self, bundle: Path) -> RemoteState:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
        from huggingface_hub.hf_api import RepoFile

        api, revision = HfApi(), self._wishes.revision
        with self._sentences():
            try:
                info = api.model_info(self._name, timeout=self._patience)
            except RepositoryNotFoundError:
                return RemoteState(exists=False)
            try:
                tree = list(api.list_repo_tree(self._name, recursive=True, revision=revision))
            except RevisionNotFoundError:
                return RemoteState(exists=True, public=not info.private, commit=info.sha)
        files = {
            entry.path: RemoteFile(
                entry.size, entry.lfs.sha256 if entry.lfs else None, None if entry.lfs else entry.blob_id
            )
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        return RemoteState(
            exists=True, files=files, public=not info.private, commit=info.sha if revision is None else None
        )

    def send(self, bundle: Path, files: Sequence[OwnFile], before: RemoteState) -> str:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.utils import disable_progress_bars

        if shows_progress() != "bars":
            disable_progress_bars()
        api, revision = HfApi(), self._wishes.revision
        with self._sentences():
            if not before.exists:
                api.create_repo(self._name, private=self._wishes.private, exist_ok=True)
            if revision is not None:
                api.create_branch(self._name, branch=revision, exist_ok=True)
            commit = api.create_commit(
                self._name,
                [CommitOperationAdd(file.name, str(file.path)) for file in files],
                commit_message=self._wishes.message,
                revision=revision,
                parent_commit=before.commit if before.files else None,
            )
        return commit.commit_url

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turns the client's errors into sentences; gives the client's connections a limit, which by themselves have none."""
        from huggingface_hub import get_session
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
        from huggingface_hub.utils import logging as hub_logging

        hub_logging.set_verbosity_error()
        get_session().timeout = self._patience
        try:
            yield
        except QtkError:
            raise
        except (GatedRepoError, RepositoryNotFoundError):
            raise self._refused() from None
        except Exception as error:
            if (answer := _answer_behind(error)) is not None:
                raise self._answered(answer.response.status_code, answer) from None
            if not (out_of_reach(error) or isinstance(error, OSError | ValueError)):
                raise
            said = first_line(error)
            raise MachineError(
                f"{self.address}: the hub cannot be reached, or did not answer in time: {said} {NOTHING_LOST}"
            ) from None

    def _answered(self, status: int, error: Exception) -> QtkError:
        if status in (401, 403):
            return self._refused()
        if status in (409, 412):
            return GateFailed(
                f"{self.address} was changed by somebody else meanwhile. Look at it, and publish again. {NOTHING_LOST}"
            )
        if status == 429:
            return MachineError(f"{self.address}: the hub asks to wait (status 429). Try again later. {NOTHING_LOST}")
        if 400 <= status < 500:
            return InputError(
                f"{self.address}: the hub does not take this (status {status}): {first_line(error)} {NOTHING_LOST}"
            )
        return MachineError(f"{self.address}: the hub answered with status {status}. Try again later. {NOTHING_LOST}")

    def _refused(self) -> InputError:
        return InputError(
            f"The hub does not let this user write to {self._name}. Log in with `hf auth login` and a token that may write, or "
            f"name a repository of your own. {NOTHING_LOST}"
        )


def _answer_behind(error: BaseException | None) -> Any:
    """The hub's answer that an error, or what it arose from, is about; None where the hub did not answer."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error
        error = error.__cause__ or error.__context__
    return None
