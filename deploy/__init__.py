"""How Headrace is run: on one machine (`local`), in containers, watched by Prometheus and Grafana."""
