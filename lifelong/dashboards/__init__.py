"""``lifelong dashboards``: what Grafana's dashboards show, drawn from a Prometheus."""
