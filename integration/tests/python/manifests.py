"""Prints all documents of the Kubernetes manifests in a folder as one JSON array."""

import json
import pathlib
import sys

import yaml

files = sorted(pathlib.Path(sys.argv[1]).glob("*.yaml"))
print(json.dumps([document for file in files for document in yaml.safe_load_all(file.read_text())]))
