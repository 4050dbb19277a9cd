"""Prints the samples of a page in OpenMetrics, as the parser of Prometheus' own Python client reads them, as a JSON array."""

import json
import sys
import urllib.request

from prometheus_client.openmetrics import parser

request = urllib.request.Request(sys.argv[1], headers={"accept": "application/openmetrics-text; version=1.0.0"})
with urllib.request.urlopen(request, timeout=10) as answer:
    kind, page = answer.headers["content-type"], answer.read().decode()
assert kind.startswith("application/openmetrics-text; version=1.0.0"), kind
samples = [
    {
        "name": sample.name,
        "labels": sample.labels,
        "value": sample.value,
        "trace": sample.exemplar.labels["trace_id"] if sample.exemplar else None,
    }
    for family in parser.text_string_to_metric_families(page)
    for sample in family.samples
]
print(json.dumps(samples))
