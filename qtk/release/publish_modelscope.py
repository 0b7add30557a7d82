"""Publishing on ModelScope, through its own client. Its listing says which sha256 each file has, and blobs that it holds are not
sent again."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qtk.checkpoint.hub import first_line
from qtk.errors import InputError, MachineError, QtkError
from qtk.install_hints import missing_package
from qtk.progress import shows_progress
from qtk.release.destinations import OwnFile, RemoteFile, RemoteState, Wishes
from qtk.release.publish_hub import NOTHING_LOST

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")


class ModelScopeRepository:
    """A model repository of ModelScope."""

    def __init__(self, name: str, wishes: Wishes) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(f"modelscope://{name} is not a repository: modelscope://ORGANISATION/NAME.")
        self.address = f"modelscope://{name}"
        self._name, self._wishes = name, wishes

    def state(self, bundle: Path) -> RemoteState:
        api = _api()
        from modelscope_hub.errors import NotExistError

        with self._sentences():
            try:
                files = api.list_repo_files(self._name, "model", revision=self._wishes.revision)
            except NotExistError:
                return RemoteState(exists=False)
        listed = {file.path: RemoteFile(file.size, file.sha256) for file in files if file.type != "tree"}
        return RemoteState(exists=True, files=listed)

    def send(self, bundle: Path, files: Sequence[OwnFile], before: RemoteState) -> str:
        api = _api()
        # The client reports on stdout, where the one result of a command stands.
        with self._sentences(), contextlib.redirect_stdout(sys.stderr):
            if not before.exists:
                api.create_repo(
                    self._name,
                    repo_type="model",
                    visibility="private" if self._wishes.private else "public",
                    license=self._wishes.licence or "other",  # without one the client claims Apache-2.0
                )
            api.upload_folder(
                repo_id=self._name,
                folder_path=str(bundle),
                allow_patterns=[file.name for file in files],
                commit_message=self._wishes.message,
                revision=self._wishes.revision,
                use_cache=False,  # its cache would lie in the bundle
                disable_tqdm=shows_progress() != "bars",
            )
        return self.address

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        from modelscope_hub.errors import (
            AuthenticationError,
            HubError,
            NetworkError,
            PermissionDeniedError,
            RateLimitError,
        )

        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
        try:
            yield
        except QtkError:
            raise
        except (AuthenticationError, PermissionDeniedError):
            raise InputError(
                f"ModelScope does not let this user write to {self._name}. Log in with `modelscope login --token TOKEN`. "
                f"{NOTHING_LOST}"
            ) from None
        except RateLimitError:
            raise MachineError(f"{self.address}: ModelScope asks to wait. Try again later. {NOTHING_LOST}") from None
        except NetworkError:
            raise MachineError(f"{self.address}: ModelScope cannot be reached. {NOTHING_LOST}") from None
        except (HubError, OSError, ValueError) as error:
            raise MachineError(
                f"{self.address}: ModelScope did not manage: {first_line(error)} {NOTHING_LOST}"
            ) from None


def _api() -> Any:
    try:
        from modelscope.hub.api import HubApi
    except ImportError:
        raise missing_package("Publishing on ModelScope", "modelscope", "modelscope") from None
    return HubApi(endpoint=os.environ.get("MODELSCOPE_ENDPOINT"))
