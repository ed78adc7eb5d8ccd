"""The alert rules are valid, and each one fires when it should and only then."""

import shutil
import subprocess
from pathlib import Path

import yaml

from tests.cluster.monitoring.prometheus_server import MONITORING, copy_configuration, needs_prometheus

TESTS = Path(__file__).with_name("alerts.test.yml")


def run_promtool(*arguments: str | Path, folder: Path) -> None:
    result = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@needs_prometheus
def test_configuration_and_rules_are_valid(tmp_path: Path) -> None:
    folder = copy_configuration(tmp_path)
    (folder / "ray_token").touch()
    run_promtool("check", "config", "prometheus.yml", folder=folder)
    run_promtool("check", "rules", "--lint-fatal", "alert-rules.yml", folder=folder)


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    folder = copy_configuration(tmp_path)
    shutil.copy(TESTS, folder)
    run_promtool("test", "rules", TESTS.name, folder=folder)


def test_every_alert_is_tested() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert alerts and not {alert for alert in alerts if f'alertname="{alert}"' not in TESTS.read_text()}
