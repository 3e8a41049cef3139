"""Dashboards for Grafana as code; `python -m infra.grafana` writes them into `dashboards/`."""
