"""What docs/scaling.md tells users to paste."""

import json
import os
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pni_tf.distribution.cluster import find_cluster

DOCS = Path(__file__).parents[1] / "docs"
# What it sets TF_CONFIG to, for two hosts and for two processes.
CLUSTERS = re.findall(
    r"TF_CONFIG='(.*?)'(?: +#| \\)", (DOCS / "scaling.md").read_text(), re.DOTALL
)


@pytest.fixture
def manifest():
    return list(yaml.safe_load_all((DOCS / "kubernetes.yaml").read_text()))


def test_the_manifest_is_valid(manifest):
    """Against the schemas of Kubernetes itself; unknown fields are errors."""
    for version in ("1.32", "1.37"):
        for resource in manifest:
            kubernetes_validate.validate(resource, version, strict=True)
    manifest[1]["spec"]["completion"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="completion"):
        kubernetes_validate.validate(manifest[1], "1.32", strict=True)


@pytest.mark.parametrize("index", [0, 1])
def test_pods_find_each_other(manifest, index, monkeypatch):
    service, job = manifest
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    script, count = re.subn("exec pni-train", "echo $TF_CONFIG; exit; :", script)
    assert count == 1
    out = subprocess.run(
        [*container["command"], script],
        env={**os.environ, "JOB_COMPLETION_INDEX": str(index)},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    monkeypatch.setenv("TF_CONFIG", out)
    cluster = find_cluster()
    assert cluster.index == index
    assert len(cluster.addresses) == job["spec"]["completions"]
    # <name of the job>-<index>.<the headless service>
    name, domain = job["metadata"]["name"], job["spec"]["template"]["spec"]["subdomain"]
    assert domain == service["metadata"]["name"]
    port = container["ports"][0]["containerPort"]
    assert cluster.addresses[index] == f"{name}-{index}.{domain}:{port}"


@pytest.mark.parametrize("config", CLUSTERS)
def test_clusters_of_the_documentation(config, monkeypatch):
    config = config.replace("'$index'", "1")
    assert json.loads(config)
    monkeypatch.setenv("TF_CONFIG", config)
    assert len(find_cluster().addresses) == 2


def test_there_are_two_of_them():
    assert len(CLUSTERS) == 2
