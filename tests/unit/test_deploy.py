"""What lies in deploy/ names the metrics, settings and paths that there are."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from demur.serving.metrics import Metrics
from demur.serving.settings import load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def test_the_dashboard_asks_for_metrics_that_the_server_has() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"demur_\w+", query)}
    known = {
        f"{family.name}{suffix}"
        for family in Metrics().registry.collect()
        for suffix in ("", "_total", "_bucket")
    }
    assert asked <= known
    assert len(asked) > 8


def test_settings_in_the_environment_of_containers_are_valid() -> None:
    environment = compose()["services"]["demur"]["environment"]
    in_image = dict(re.findall(r"(DEMUR_SERVE_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text()))
    settings = load_settings(None, {}, environment={**in_image, **environment})
    assert settings.host == "0.0.0.0"
    assert settings.audit.path is not None


def test_files_that_containers_mount_are_there() -> None:
    services = compose()["services"].values()
    mounts = [volume for service in services for volume in service.get("volumes", ())]
    local = [volume.split(":")[0] for volume in mounts if volume.startswith(".")]
    assert len(local) == 4
    assert all((DEPLOY / path).is_file() for path in local)
