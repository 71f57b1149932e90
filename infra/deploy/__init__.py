"""What an operator's Prometheus and Grafana are given: rules, alerts, dashboards; and the metrics.

They are written here as Python, next to the metrics that they name, and committed as Prometheus and
Grafana read them. `python -m infra.deploy` writes them again; tests hold them against each other.
"""
