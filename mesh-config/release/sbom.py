"""Writes the bill of materials of a binary: CycloneDX 1.6, JSON.

    cargo metadata --format-version 1 --locked --filter-platform TARGET | sbom.py PACKAGE Cargo.lock > PACKAGE.cdx.json

Components are the crates that the package is made of: what it depends on, and what that depends on. Crates that only build
scripts need are in it as `excluded`: they take part in the build and are not in the binary. Those of tests are left out. Features
are those of the whole workspace, so a crate more may be listed than is linked, and none less. The same input gives the same output.
"""

import json
import sys
import tomllib
import uuid
from hashlib import sha256

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL


def crates(nodes, root):
    """Ids of what is linked, and of what only build scripts (and procedural macros) bring."""

    def reach(starts, kinds):
        seen, todo = set(), list(starts)
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            wanted = [d["pkg"] for d in nodes[node]["deps"] if any(k["kind"] in kinds for k in d["dep_kinds"])]
            todo += wanted
        return seen

    linked = reach([root], {None})
    return linked, reach(linked, {None, "build"}) - linked


def component(package, checksums, scope, kind=ComponentType.LIBRARY):
    name, version = package["name"], package["version"]
    digest = checksums.get((name, version))
    licence = package["license"]
    # Some write `MIT/Apache-2.0`, from before there were expressions.
    licences = [LicenseFactory().make_from_string(licence.replace("/", " OR "))] if licence else []
    repository = package["repository"]
    links = [ExternalReference(type=ExternalReferenceType.VCS, url=XsUri(repository))] if repository else []
    return Component(
        type=kind,
        name=name,
        version=version,
        bom_ref=f"{name}@{version}",
        purl=PackageURL("cargo", None, name, version),
        licenses=licences,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else [],
        external_references=links,
        scope=scope,
    )


def bill(metadata, lock, name):
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    root = next(p["id"] for p in packages.values() if p["name"] == name and p["source"] is None)
    linked, building = crates(nodes, root)
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.loads(lock)["package"]}
    made = {root: component(packages[root], checksums, None, ComponentType.APPLICATION)}
    for ids, scope in ((linked - {root}, ComponentScope.REQUIRED), (building, ComponentScope.EXCLUDED)):
        made |= {id: component(packages[id], checksums, scope) for id in ids}

    result = Bom(components=[made[id] for id in made if id != root])
    result.metadata.component = made[root]
    # Of what it says, not of when it was made.
    result.metadata.timestamp = None
    result.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"tenon:{name}:{sha256(lock.encode()).hexdigest()}")
    for id in made:
        needs = [d for d in nodes[id]["deps"] if any(k["kind"] in (None, "build") for k in d["dep_kinds"])]
        result.register_dependency(made[id], [made[d["pkg"]] for d in needs if d["pkg"] in made])
    return result


if __name__ == "__main__":
    lock = open(sys.argv[2], encoding="utf-8").read()
    print(JsonV1Dot6(bill(json.load(sys.stdin), lock, sys.argv[1])).output_as_string(indent=2))
