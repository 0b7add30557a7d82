"""The bill of materials of a bundle, as CycloneDX 1.6 JSON: the model, the models and data that it was made from, and the packages
that the manifests of its chain name, with versions, licences and package URLs.

Specification: https://cyclonedx.org/docs/1.6/json/. Licences of packages are those that the installed package of that very version
declares; of any other version nothing is claimed.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import qtk
from qtk.install_hints import DISTRIBUTION, missing_package

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from packageurl import PackageURL

SBOM_NAME = "sbom.cdx.json"
_CLASSIFIER = "License :: OSI Approved :: "
# What the classifiers of the trove list call licences that have an SPDX name.
_SPDX_OF_CLASSIFIER = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
}


@dataclass(frozen=True)
class Ingredient:
    """A model, adapter or other input at the start of the chain. name: an id of the hub, or what a manifest calls it. files:
    name -> sha256. licence: as its card names it."""

    role: str
    name: str
    commit: str = ""
    licence: str = ""
    files: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Materials:
    """What a bill lists. name: of the bundle. version: the sha256 of the artefact's manifest. ended: when the artefact was done,
    ISO 8601; packages: (name, version); qtk_versions: those that took part."""

    name: str
    version: str
    ended: str
    licence: str
    ingredients: tuple[Ingredient, ...]
    packages: frozenset[tuple[str, str]]
    qtk_versions: frozenset[str]


def require_sbom() -> None:
    """MachineError where the package that writes bills is not installed."""
    try:
        importlib.metadata.version("cyclonedx-python-lib")
    except importlib.metadata.PackageNotFoundError:
        raise missing_package("A bundle's bill of materials", "cyclonedx-python-lib", "release") from None


def sbom_json(materials: Materials) -> str:
    """The bill as JSON; the same materials give the same text."""
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    outputter = make_outputter(_bill(materials), OutputFormat.JSON, SchemaVersion.V1_6)
    return outputter.output_as_string(indent=2) + "\n"


def _bill(materials: Materials) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType

    model = Component(
        name=materials.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=materials.version[:12],
        bom_ref="bundle",
        licenses=_named(materials.licence),
    )
    parts = [_ingredient(number, part) for number, part in enumerate(materials.ingredients, 1)]
    parts += [_package(name, version) for name, version in sorted(materials.packages)]
    parts += [_package(DISTRIBUTION, version) for version in sorted(materials.qtk_versions)]
    ended = datetime.datetime.fromisoformat(materials.ended)
    tool = Component(name=DISTRIBUTION, type=ComponentType.APPLICATION, version=qtk.__version__, bom_ref="tool")
    metadata = BomMetaData(component=model, timestamp=ended)
    metadata.tools.components.add(tool)
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"qtk-bundle:{materials.name}:{materials.version}")
    bill = Bom(components=parts, metadata=metadata, serial_number=number)
    bill.register_dependency(model, parts)
    return bill


def _ingredient(number: int, part: Ingredient) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    organisation, _, name = part.name.partition("/")
    on_hub = bool(part.commit)
    data = part.role not in ("base", "model", "adapter", "prepared", "engine")
    only = next(iter((part.files or {}).values())) if part.files and len(part.files) == 1 else None
    sums = [Property(name=f"qtk:sha256:{file}", value=sha256) for file, sha256 in sorted((part.files or {}).items())]
    return Component(
        name=name if on_hub else part.name,
        group=organisation if on_hub else None,
        type=ComponentType.DATA if data else ComponentType.MACHINE_LEARNING_MODEL,
        version=part.commit or None,
        bom_ref=f"input-{number}",
        purl=_purl("huggingface", name, part.commit, organisation) if on_hub else None,
        licenses=_named(part.licence),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=only)] if only else None,
        properties=[Property(name="qtk:role", value=part.role), *sums],
    )


def _package(name: str, version: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    licenses = _declared(name, version)
    purl = _purl("pypi", name.lower().replace("_", "-"), version)
    reference = f"package-{name}-{version}"
    return Component(
        name=name, type=ComponentType.LIBRARY, version=version, bom_ref=reference, purl=purl, licenses=licenses
    )


def _purl(kind: str, name: str, version: str, namespace: str | None = None) -> PackageURL:
    from packageurl import PackageURL

    return PackageURL(type=kind, namespace=namespace, name=name, version=version)


def _declared(name: str, version: str) -> list[LicenseExpression | DisjunctiveLicense]:
    """What the installed distribution declares, if it is of this version."""
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    if metadata["Version"] != version:
        return []
    classifiers = [text for text in metadata.get_all("Classifier") or () if text.startswith(_CLASSIFIER)]
    by_class = [_SPDX_OF_CLASSIFIER.get(text.removeprefix(_CLASSIFIER), "") for text in classifiers]
    expression, free_text = ((metadata.get_all(key) or [""])[0] for key in ("License-Expression", "License"))
    text = expression or (by_class[0] if len(by_class) == 1 else "") or free_text
    return _named(text if len(text) <= 200 and "\n" not in text else "")


def _named(licence: str) -> list[LicenseExpression | DisjunctiveLicense]:
    """A licence by its SPDX name where it has one ("apache-2.0" as the hub writes it included), else by the name it goes by."""
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
    from cyclonedx.spdx import fixup_id, is_expression

    if not licence:
        return []
    if identity := fixup_id(licence):
        return [DisjunctiveLicense(id=identity)]
    return [LicenseExpression(licence) if is_expression(licence) else DisjunctiveLicense(name=licence)]


def packages_of(manifests: Iterable[Mapping[str, str]]) -> frozenset[tuple[str, str]]:
    """(name, version) of every package that the manifests name."""
    return frozenset((name, version) for packages in manifests for name, version in packages.items())
